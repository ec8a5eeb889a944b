"""Data sets whose interaction is known, because it was planted: what explanations are checked against.

Every row draws one hidden signal per modality, a bit or a standard normal value; a rule makes the label of the signals,
and every modality shows its own signal alone, encoded into columns. So the expert that ought to decide is known:

    unique:mK    the signal of modality K; the other modalities carry independent signals      unique:mK
    redundancy   one signal that all modalities carry                                           redundancy
    xor          m1 xor m2; each alone says nothing                                             synergy
    parity       m1 xor m2 xor m3; any two say nothing                                          synergy
    and          all bits, each 1 with probability 2^(-1/n), so that classes are balanced       synergy; see below
    product      m1 * m2 (regression)                                                           synergy
    mixture      each row is, with equal chances, unique:m1 .. unique:mn, redundancy or xor; which one is shown as
                 a one-hot code in every modality                                               the row's own
    additive     the sum of all values, or its sign: each modality adds an equal, separate part none

Truth of `and`, over all rows: with two modalities each bit alone holds 0.38 of the label's 1 bit, the same 0.38 by symmetry,
and the other 0.62 exist only together (partial information decomposition of Bertschinger et al., "Quantifying unique
information", Entropy 16, 2014), so synergy is its largest part, not its only one. A row's own truth are its minimal sufficient
sets, the smallest sets of signals that fix the label whatever the others are ("On the reasons behind decisions", Darwiche
and Hirth, ECAI 2020): only ones, and all are needed (synergy); one 0, which is enough (unique to its modality); more, and any
of them is enough (redundancy). In the other kinds rows and data set have the same truth by that rule.

Truth is about what is shown. Where noise hides a bit, so that even a reader who knows the encoding gives what was planted a
probability below `READABLE`, modalities no longer say what the rule assumes (of a bit that both carried, only one still
tells), and the row has no truth. At noise 0.3 that is 1 bit in 500, at 0.5 one in 10.

Shape suffixes: N rows, n modalities, F columns of a modality.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logsumexp

from training.errors import DataError

Floats = NDArray[np.float64]
Encoding = Literal["direct", "rotated", "codebook"]
PlantedTask = Literal["classification", "regression"]

NO_TRUTH = ""  # the truth of rows that no single expert explains, or in which noise hides a bit
READABLE = 0.95  # the posterior probability from which a planted bit is shown
PROTOTYPES_PER_BIT = 4
_ANCHORS = np.linspace(-3, 3, 2 * PROTOTYPES_PER_BIT)  # values at which a codebook's path turns; beyond them it ends
_TASKS: Mapping[str, tuple[PlantedTask, ...]] = {
    "unique": ("classification", "regression"),
    "redundancy": ("classification", "regression"),
    "additive": ("classification", "regression"),
    "xor": ("classification",),
    "and": ("classification",),
    "parity": ("classification",),
    "mixture": ("classification",),
    "product": ("regression",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PlantedConfig:
    """One data set. Equal configurations encode alike, whatever the seed of the rows.

    `noise` is the standard deviation of Gaussian noise on the encoded signal, where a bit is -1 or 1 (in a codebook on every
    column, where prototypes are sqrt(2 F) apart); at 0.3 a bit is read with accuracy 0.999. `label_noise` is the
    probability that a class is flipped; in regression the standard deviation of noise on the label, as a share of the
    clean label's. Raises `DataError`.
    """

    kind: str
    num_modalities: int = 2
    task: PlantedTask = "classification"
    encoding: Encoding = "direct"
    noise: float = 0.3
    label_noise: float = 0.0
    num_rows: int = 3000
    num_features: int = 12  # columns that encode the signal; a mixture's context code stands beside them
    encoding_seed: int = 0  # of rotations and codebooks

    def __post_init__(self) -> None:
        _check_kind(self)
        _check_numbers(self)

    @property
    def family(self) -> str:
        """The kind without its modality."""
        return self.kind.partition(":")[0]

    @property
    def modalities(self) -> tuple[str, ...]:
        """m1, m2, ..."""
        return tuple(f"m{k + 1}" for k in range(self.num_modalities))

    @property
    def whole(self) -> str:
        """The expert that ought to decide over all rows together; NO_TRUTH in mixtures and where no single expert does."""
        match self.family:
            case "unique" | "redundancy":
                return self.kind
            case "mixture" | "additive":
                return NO_TRUTH
            case _:
                return "synergy"

    @property
    def groups(self) -> tuple[str, ...]:
        """The true experts of a mixture's types."""
        return (*(f"unique:{name}" for name in self.modalities), "redundancy", "synergy")


def _check_kind(config: PlantedConfig) -> None:
    if config.family not in _TASKS:
        raise DataError(f"kind: expected one of {', '.join(_TASKS)} (unique with its modality), found {config.kind!r}")
    if config.task not in _TASKS[config.family]:
        raise DataError(f"task: kind {config.kind} expects {' or '.join(_TASKS[config.family])}, found {config.task!r}")
    if config.encoding not in ("direct", "rotated", "codebook"):
        raise DataError(f"encoding: expected direct, rotated or codebook, found {config.encoding!r}")
    fewest = 3 if config.kind == "parity" else 2
    if not fewest <= config.num_modalities <= 4:
        raise DataError(f"num_modalities: kind {config.kind} expects {fewest} to 4, found {config.num_modalities}")
    named = [f"unique:{name}" for name in config.modalities]
    if config.kind not in ({*_TASKS} - {"unique"}) | {*named}:
        raise DataError(f"kind: expected {', '.join(named)} or a kind without a modality, found {config.kind!r}")


def _check_numbers(config: PlantedConfig) -> None:
    fewest = 2 * PROTOTYPES_PER_BIT
    if config.num_features < fewest:
        raise DataError(f"num_features: expected at least {fewest}, found {config.num_features}")
    if config.num_rows < 1:
        raise DataError(f"num_rows: expected at least 1, found {config.num_rows}")
    if not 0 <= config.noise < np.inf:
        raise DataError(f"noise: expected a standard deviation from 0, found {config.noise}")
    most = 0.5 if config.task == "classification" else np.inf
    if not 0 <= config.label_noise < most:
        raise DataError(f"label_noise: expected from 0 to below {most} in {config.task}, found {config.label_noise}")
    if config.encoding_seed < 0:
        raise DataError(f"encoding_seed: expected at least 0, found {config.encoding_seed}")


@dataclass(frozen=True, slots=True)
class PlantedData:
    """Rows of a planted data set. Row i of everything belongs together."""

    arrays: Mapping[str, NDArray[np.float32]]  # modality -> (N, columns)
    target: NDArray[Any]  # (N,), classes 0 and 1 as int64, or float32 numbers
    clean: NDArray[Any]  # (N,), the target before label noise: what a reader of all signals would answer
    truth: NDArray[np.str_]  # (N,), the expert that ought to decide: "unique:m1", "synergy", "redundancy"; or NO_TRUTH


def generate(config: PlantedConfig, seed: int) -> PlantedData:
    """Draw `config.num_rows` rows. The same configuration and seed give the same rows; another seed, other rows."""
    generator = np.random.default_rng(seed)
    signals_Nn = _draw_signals(config, generator)
    truth = _truth_of_and(config, signals_Nn) if config.kind == "and" else np.full(config.num_rows, config.whole)
    context_NT = np.zeros((config.num_rows, 0))
    if config.family == "mixture":
        types_N = generator.integers(len(config.groups), size=config.num_rows)
        truth, context_NT = np.array(config.groups)[types_N], np.eye(len(config.groups))[types_N]
        signals_Nn = np.where((truth == "redundancy")[:, None], signals_Nn[:, :1], signals_Nn)
        clean = _mixed_labels(config, signals_Nn, types_N)
    else:
        clean = _label(config, config.kind, signals_Nn)
    columns = {name: _encode(config, k, signals_Nn[:, k], generator) for k, name in enumerate(config.modalities)}
    arrays = {name: np.concatenate([c_NF, context_NT], axis=1).astype(np.float32) for name, c_NF in columns.items()}
    shown_nN = [_is_shown(config, k, signals_Nn[:, k], columns_NF) for k, columns_NF in enumerate(columns.values())]
    dtype = np.int64 if config.task == "classification" else np.float32
    target = _add_label_noise(config, clean, generator)
    return PlantedData(arrays, target.astype(dtype), clean.astype(dtype), np.where(np.all(shown_nN, axis=0), truth, NO_TRUTH))


def _carries_values(config: PlantedConfig) -> bool:
    """Whether signals are values, not bits."""
    return config.task == "regression" or config.kind == "additive"


def _draw_signals(config: PlantedConfig, generator: np.random.Generator) -> Floats:
    """Hidden signals (N, n): independent values or bits; with redundancy the first modality's in all of them."""
    shape = (config.num_rows, config.num_modalities)
    if _carries_values(config):
        signals_Nn = generator.standard_normal(shape)
    else:
        chance = 2 ** (-1 / config.num_modalities) if config.kind == "and" else 0.5
        signals_Nn = (generator.random(shape) < chance).astype(np.float64)
    return np.broadcast_to(signals_Nn[:, :1], shape) if config.kind == "redundancy" else signals_Nn


def _label(config: PlantedConfig, kind: str, signals_Nn: Floats) -> Floats:
    """The label (N,) that a kind's rule makes of signals (N, n)."""
    rules: Mapping[str, Callable[[Floats], Floats]] = {
        "redundancy": lambda s: s[:, 0],
        "xor": lambda s: s[:, :2].sum(axis=1) % 2,
        "parity": lambda s: s[:, :3].sum(axis=1) % 2,
        "and": lambda s: s.prod(axis=1),
        "product": lambda s: s[:, 0] * s[:, 1],
        "additive": lambda s: s.sum(axis=1) if config.task == "regression" else (s.sum(axis=1) > 0).astype(np.float64),
    }
    modality = kind.removeprefix("unique:")
    return signals_Nn[:, config.modalities.index(modality)] if modality != kind else rules[kind](signals_Nn)


def _truth_of_and(config: PlantedConfig, signals_Nn: Floats) -> NDArray[np.str_]:
    """Every row's minimal sufficient sets (N,): all signals, its one 0, or any of its zeros."""
    zeros_Nn = signals_Nn == 0
    unique_N = np.array([f"unique:{name}" for name in config.modalities])[zeros_Nn.argmax(axis=1)]
    return np.select([zeros_Nn.sum(axis=1) == 0, zeros_Nn.sum(axis=1) == 1], ["synergy", unique_N], "redundancy")


def _mixed_labels(config: PlantedConfig, signals_Nn: Floats, types_N: NDArray[np.int64]) -> Floats:
    """Every row's label (N,) by the rule of its own type."""
    kinds = ["xor" if group == "synergy" else group for group in config.groups]
    labels_NT = np.stack([_label(config, kind, signals_Nn) for kind in kinds], axis=1)
    return np.take_along_axis(labels_NT, types_N[:, None], axis=1)[:, 0]


def _add_label_noise(config: PlantedConfig, clean_N: Floats, generator: np.random.Generator) -> Floats:
    if config.task == "classification":
        return np.abs(clean_N - (generator.random(len(clean_N)) < config.label_noise))
    return clean_N + config.label_noise * clean_N.std() * generator.standard_normal(len(clean_N))


def _encode(config: PlantedConfig, modality: int, signal_N: Floats, generator: np.random.Generator) -> Floats:
    """One modality's signal (N,) as noisy columns (N, F)."""
    shape = (len(signal_N), config.num_features)
    if config.encoding == "codebook":
        clean_NF = _look_up(config, _prototypes(config, modality), signal_N, generator)
        return clean_NF + config.noise * generator.standard_normal(shape)
    columns_NF = generator.standard_normal(shape)  # distractors, but for the first
    level_N = signal_N if _carries_values(config) else 2 * signal_N - 1
    columns_NF[:, 0] = level_N + config.noise * columns_NF[:, 0]
    return columns_NF @ _rotation(config, modality) if config.encoding == "rotated" else columns_NF


def _is_shown(config: PlantedConfig, modality: int, signal_N: Floats, columns_NF: Floats) -> NDArray[np.bool_]:
    """Whether a reader who knows the encoding sees the planted bit (N,); values are always shown, noise and all."""
    if _carries_values(config) or config.noise == 0:
        return np.ones(len(signal_N), np.bool_)
    if config.encoding == "codebook":
        prototypes_KF = _prototypes(config, modality)
        log_likelihood_NK = columns_NF @ prototypes_KF.T / config.noise**2  # less what all have in common: they are as long
        log_odds_N = logsumexp(log_likelihood_NK[:, PROTOTYPES_PER_BIT:], axis=1)
        log_odds_N -= logsumexp(log_likelihood_NK[:, :PROTOTYPES_PER_BIT], axis=1)
    else:
        read_NF = columns_NF @ _rotation(config, modality).T if config.encoding == "rotated" else columns_NF
        log_odds_N = 2 * read_NF[:, 0] / config.noise**2
    return np.asarray(expit((2 * signal_N - 1) * log_odds_N) >= READABLE)


def _look_up(config: PlantedConfig, prototypes_KF: Floats, signal_N: Floats, generator: np.random.Generator) -> Floats:
    """A bit is one of its own prototypes, drawn anew in every row; a value is a point on the path through all of them."""
    if _carries_values(config):
        return np.stack([np.interp(signal_N, _ANCHORS, prototype_K) for prototype_K in prototypes_KF.T], axis=1)
    drawn_N = generator.integers(PROTOTYPES_PER_BIT, size=len(signal_N))
    return prototypes_KF[PROTOTYPES_PER_BIT * signal_N.astype(np.int64) + drawn_N]


def _prototypes(config: PlantedConfig, modality: int) -> Floats:
    """A codebook's prototypes (K, F), those of bit 0 first, sqrt(2 F) apart."""
    prototypes_KF: Floats = _rotation(config, modality)[: 2 * PROTOTYPES_PER_BIT] * np.sqrt(config.num_features)
    return prototypes_KF


def _rotation(config: PlantedConfig, modality: int) -> Floats:
    """A random orthogonal matrix (F, F): the Q of a Gaussian matrix (uniform once R's diagonal is made positive)."""
    generator = np.random.default_rng([config.encoding_seed, modality])
    orthogonal_FF, upper_FF = np.linalg.qr(generator.standard_normal((config.num_features, config.num_features)))
    rotation_FF: Floats = orthogonal_FF * np.sign(np.diag(upper_FF))
    return rotation_FF
