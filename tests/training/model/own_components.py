"""A user's own encoder and backbone, as a recipe names them by import path; nothing of ours knows them."""

from typing import Any

from torch import Tensor, nn

from service.bundle.schema import Modality
from training.config import Config
from training.model.encoders import Encoder
from training.model.fusion import Fusion, FusionOutput


class TrendEncoder(Encoder):
    """The change of every column over `window` columns, to tokens."""

    class Config(Config):
        window: int = 1

    def __init__(self, modality: Modality, *, num_patches: int, hidden_dim: int, config: "TrendEncoder.Config") -> None:
        super().__init__()
        self.window, self.num_patches = config.window, num_patches
        self.linear = nn.Linear(modality.width - config.window, num_patches * hidden_dim)

    def forward(self, x_BF: Tensor) -> Tensor:
        x_BF = x_BF.nan_to_num()
        changes = x_BF[:, self.window :] - x_BF[:, : -self.window]
        return self.linear(changes).unflatten(1, (self.num_patches, -1))


class MeanFusion(Fusion):
    """The mean of all tokens, scaled, through one linear map."""

    class Config(Config):
        scale: float = 1.0

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.head = nn.Linear(arguments["hidden_dim"], arguments["num_outputs"])

    def forward(self, tokens_BnPD: Tensor) -> FusionOutput:
        latent_BK = self.config.scale * tokens_BnPD.mean(dim=(1, 2))
        return FusionOutput(self.head(latent_BK), latent_BK, latent_BK.new_zeros(()))
