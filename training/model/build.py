"""The [model] section of a recipe, and the model it describes."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, ValidationError
from torch import nn

from service.bundle.manifest import ExpertInfo, TaskInfo
from service.bundle.schema import FeatureSchema, Modality
from training.config import MAX_LAYERS, Config
from training.errors import RecipeError
from training.model.calibration import Calibration
from training.model.encoders import ENCODERS, Encoder
from training.model.fusion import FUSIONS, Fusion
from training.model.mixture import I2MoE
from training.model.modality import ModalityEncoder
from training.model.reweighting import Reweighting, SimpleWeights
from training.model.rows import TrainingRows
from training.model.units import TargetUnits

DEFAULT = "default"


ExpertSet = Literal["all", "synergy_redundancy", "single"]


def expert_roles(schema: FeatureSchema, experts: ExpertSet = "all") -> tuple[ExpertInfo, ...]:
    """The experts in the order of the model: one per modality, then synergy, then redundancy; or an ablation's.

    "synergy_redundancy" has no uniqueness experts; "single" is the backbone alone, one fusion module with weight 1.
    """
    unique = [ExpertInfo(name=f"unique:{name}", kind="uniqueness", modality=name) for name in schema.names]
    shared = (ExpertInfo(name="synergy", kind="synergy"), ExpertInfo(name="redundancy", kind="redundancy"))
    return {"all": (*unique, *shared), "synergy_redundancy": shared, "single": (ExpertInfo(name="fusion", kind="fusion"),)}[
        experts
    ]


class ReweightingConfig(Config):
    """The network that weighs the experts."""

    kind: Literal["mlp", "simple"] = "mlp"  # "simple": one learned vector for all samples, an ablation
    hidden_dim: int = Field(default=128, ge=1)
    num_layers: int = Field(default=2, ge=1, le=MAX_LAYERS)
    temperature: float = Field(default=1.0, gt=0)
    dropout: float = Field(default=0.5, ge=0, lt=1)  # the released code fixes 0.5, whatever the experts' dropout


class ModelConfig(Config):
    """The [model] section."""

    fusion: str = "transformer"  # a registered backbone, or a user's own as package.module:Class
    fusion_options: dict[str, Any] = {}  # its own options
    hidden_dim: int = Field(default=128, ge=1)
    num_patches: int = Field(default=4, ge=1)  # tokens per modality
    num_layers: int = Field(default=2, ge=1, le=MAX_LAYERS)
    num_heads: int = Field(default=4, ge=1)
    dropout: float = Field(default=0.5, ge=0, lt=1)  # in the experts
    missing: Literal["learned", "reject"] = "learned"  # a record without a whole modality: learned token, or refused
    modality_dropout: float = Field(default=0.05, ge=0, lt=1)  # training: how often a present modality is hidden
    reweighting: ReweightingConfig = ReweightingConfig()
    experts: ExpertSet = "all"  # "synergy_redundancy" and "single" are ablations
    encoders: dict[str, dict[str, Any]] = {}  # modality or "default" to {kind, options}; kind as `fusion`


def build_model(config: ModelConfig, schema: FeatureSchema, task: TaskInfo) -> I2MoE:
    """A freshly initialised model, drawing from torch's global random state. Raises `RecipeError`."""
    if unknown := set(config.encoders) - {DEFAULT, *schema.names}:
        raise RecipeError(f"model.encoders: {sorted(unknown)} are not modalities; expected {', '.join((DEFAULT, *schema.names))}")
    num_modalities, num_outputs = len(schema.modalities), len(task.labels)
    roles = expert_roles(schema, config.experts)
    try:
        return I2MoE(
            encoders=[_modality_encoder(config, modality, schema.missing) for modality in schema.modalities],
            expert=_expert(config, num_modalities, num_outputs),
            roles=roles,
            reweighting=_reweighting(config, num_modalities, len(roles)),
            calibration=Calibration(num_outputs, task.kind),
            units=TargetUnits() if task.kind == "regression" else None,
        )
    except (RuntimeError, TypeError, OverflowError, MemoryError) as error:  # torch's, at sizes that nobody has memory for
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise RecipeError(f"model: cannot be built: are its sizes too large? ({reason})") from error


def with_fresh_experts(model: I2MoE, config: ModelConfig) -> I2MoE:
    """The model with every expert and the reweighting network initialised anew, each expert by itself.

    Encoders, calibration and units are the model's own, not copies. Draws from torch's global random state.
    """
    num_modalities, num_outputs, device = len(model.encoders), len(model.calibration.scale), model.calibration.scale.device
    fresh = I2MoE(
        encoders=list(model.encoders),
        expert=_expert(config, num_modalities, num_outputs),
        roles=model.roles,
        reweighting=_reweighting(config, num_modalities, len(model.roles)),
        calibration=model.calibration,
        units=model.units,
    )
    fresh.experts = nn.ModuleList(_expert(config, num_modalities, num_outputs) for _ in model.roles)
    return fresh.to(device).train(model.training)


def _reweighting(config: ModelConfig, num_modalities: int, num_experts: int) -> nn.Module:
    if config.reweighting.kind == "simple":
        return SimpleWeights(num_experts)
    options = config.reweighting.model_dump(exclude={"kind"})
    return Reweighting(in_dim=num_modalities * config.hidden_dim, num_experts=num_experts, **options)


def _expert(config: ModelConfig, num_modalities: int, num_outputs: int) -> Fusion:
    if config.hidden_dim % config.num_heads:
        raise RecipeError(f"model.hidden_dim must be a multiple of num_heads, found {config.hidden_dim} and {config.num_heads}")
    fusion = FUSIONS.find(config.fusion, "model.fusion")
    arguments = config.model_dump(include={"num_patches", "hidden_dim", "num_layers", "num_heads", "dropout"})
    options = parse_options(fusion.Config, config.fusion_options, "model.fusion_options")
    return fusion(config=options, num_modalities=num_modalities, num_outputs=num_outputs, **arguments)


def _modality_encoder(config: ModelConfig, modality: Modality, missing: str) -> ModalityEncoder:
    encoder = _encoder(config, modality)
    return ModalityEncoder(encoder, config.num_patches, config.hidden_dim, has_missing_token=missing == "learned")


def _encoder(config: ModelConfig, modality: Modality) -> Encoder:
    options = dict(config.encoders.get(modality.name) or config.encoders.get(DEFAULT) or {})
    kind = options.pop("kind", "feature")
    encoder = ENCODERS.find(kind, f"model.encoders.{modality.name}.kind")
    parsed = parse_options(encoder.Config, options, f"model.encoders.{modality.name}")
    return encoder(modality, num_patches=config.num_patches, hidden_dim=config.hidden_dim, config=parsed)


def parse_options(options_class: type[Config], options: Mapping[str, Any], place: str) -> Config:
    """A component's own options, checked. Raises `RecipeError` naming `place`, the option and what is wrong with it."""
    try:
        return options_class.model_validate_json(json.dumps(options), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, (place, *first["loc"])))
        raise RecipeError(f"{where}: {first['msg']}") from error


def fit_encoders(model: I2MoE, inputs: Sequence[TrainingRows]) -> None:
    """Let every encoder learn its statistics from the training rows, (N, columns) of each modality."""
    for encoder, x_NF in zip(model.encoders, inputs, strict=True):
        assert isinstance(encoder, ModalityEncoder)
        encoder.encoder.fit(x_NF)
