"""The [objective] section of a recipe."""

from typing import Literal

from pydantic import Field, PositiveFloat, model_validator

from training.config import Config


class DecompositionConfig(Config):
    """How evidence is read and how experts learn their parts of it: `training.objectives.experts` says what each does."""

    evidence_limit: float = Field(default=4.0, gt=0)  # evidence is limited to margins (log odds) of this size
    head_hidden: int = Field(default=64, ge=1)  # hidden units of the predictors that see one modality, or all others
    head_dropout: float = Field(default=0.2, ge=0, lt=1)
    shuffle_rate: float = Field(default=0.3, ge=0, le=1)  # how often a modality's rows trade places in the second half of a batch
    sum_weight: float = Field(default=4.0, ge=0)  # of the squared error of the experts' sum, which keeps predictions
    weight_share: float = Field(default=0.1, ge=0)  # of the loss that makes weights follow shares of contribution
    max_dropout: float = Field(default=0.1, ge=0, lt=1)  # in the experts while they learn their parts
    min_steps: int = Field(default=500, ge=0)  # the experts learn for so many steps, should train.epochs make fewer
    rate: float = Field(default=3.0, gt=0)  # their learning rate, as a multiple of train.learning_rate


class ObjectiveConfig(Config):
    """What a model is trained to do: "paper" is the published objective, "decomposition" then gives every expert its part.

    Keys of the published objective are those of the decomposition's first stage.
    """

    kind: Literal["paper", "decomposition"] = "decomposition"
    interaction_weight: float = Field(default=0.01, ge=0)  # lambda_int of the paper; 0 trains without interaction losses
    masking: Literal["random", "mean", "zero"] = "random"
    class_weights: Literal["balanced"] | tuple[PositiveFloat, ...] | None = None  # "balanced": by training frequencies
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    regression_losses: Literal["bounded", "released"] = "bounded"  # regression: which interaction losses
    on: Literal["logits", "latents"] = "logits"  # what the interaction losses compare; latents: an ablation, with live gradient
    num_perturbed: int | None = Field(default=None, ge=1)  # perturbed passes a step, modalities drawn at random; None: all
    gate_weight: float = Field(default=0.01, ge=0)  # of the load-balancing loss of backbones with gates
    decomposition: DecompositionConfig = DecompositionConfig()

    @model_validator(mode="after")
    def _keys_belong_to_the_kind(self) -> "ObjectiveConfig":
        if self.kind == "paper" and self.decomposition != DecompositionConfig():
            raise ValueError(f"decomposition is not for kind = {self.kind}: leave it out")
        return self
