"""Features extractors for pictures that are too small for NatureCNN, and how many pictures are read at a time."""

from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BaseModel, BasePolicy
from stable_baselines3.common.preprocessing import get_flattened_obs_dim, is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, NatureCNN
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_shm.memory.checks import check_in_range
from sb3_shm.training.spaces import is_small_picture

LEAST, LARGEST_MAP = 3, 8
AT_A_TIME = 256
"""Pictures whose maps fit into a processor's caches; those of thousands are memory that the system clears anew each time."""


class SmallCNN(BaseFeaturesExtractor):
    """
    Reads pictures from 3 x 3 pixels on: two convolutions of 32 and 64 channels that keep each pixel's place, further ones of
    64 that halve the picture until it has 8 x 8 pixels at most, a linear layer. Kernels are 3 x 3.

    Pictures whose channels are small numbers rather than brightness, such as MiniGrid's (kind of object up to 10, colour up to
    5, state up to 3), become nearly black when the policy divides them by 255: give it ``normalize_images=False``. The numbers
    then come in as they are, or, with ``n_values``, each as a vector of its own.

    :param observation_space: Box, (channels, height, width)
    :param features_dim: number of features
    :param n_values: None for a picture; n if each channel is one of n numbers, from 0 to n - 1, without an order: they are
        made one-hot. Greater ones count as n - 1. Needs ``normalize_images=False``.
    :raises ValueError: no picture, one below 3 x 3 pixels, or ``features_dim`` below 1, or ``n_values`` below 2
    """

    def __init__(self, observation_space: spaces.Box, features_dim: int = 128, n_values: int | None = None) -> None:
        if len(observation_space.shape) != 3 or min(observation_space.shape[1:]) < LEAST:
            raise ValueError(
                f"SmallCNN reads pictures from {LEAST} x {LEAST} pixels on, got {observation_space}: write 'MlpSHMPolicy', "
                "which flattens them"
            )
        check_in_range("features_dim", features_dim, low=1, integer=True)
        if n_values is not None:
            check_in_range("n_values, how many numbers a channel may be (None for a picture),", n_values, low=2, integer=True)
        super().__init__(observation_space, features_dim)
        self.n_values = n_values
        channels, height, width = observation_space.shape
        layers: list[nn.Module] = [nn.Conv2d(channels * (n_values or 1), 32, 3, padding=1), nn.ReLU()]
        layers += [nn.Conv2d(32, 64, 3, padding=1), nn.ReLU()]
        while max(height, width) > LARGEST_MAP:
            layers += [nn.Conv2d(64, 64, 3, stride=2, padding=1), nn.ReLU()]
            height, width = (height + 1) // 2, (width + 1) // 2
        self.cnn = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * height * width, features_dim), nn.ReLU())

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """
        :param observations: (N, channels, height, width)
        :return: (N, features_dim)
        """
        if self.n_values is not None:
            numbers = th.arange(self.n_values, device=observations.device).view(1, 1, -1, 1, 1)
            observations = (observations.clamp(max=self.n_values - 1).unsqueeze(2) == numbers).flatten(1, 2).float()
        features: th.Tensor = self.cnn(observations)
        return features


class SmallCombinedExtractor(CombinedExtractor):
    """
    SB3's CombinedExtractor for Dict observations in which a picture is too small for NatureCNN: :class:`SmallCNN` reads it, or
    below 3 x 3 pixels it is flattened.

    :param observation_space: observation space
    :param cnn_output_dim: features of each picture
    :param normalized_image: whether every Box with three dimensions is a picture, not only those of uint8 from 0 to 255; set
        by the policy with ``normalize_images=False``
    :param n_values: see :class:`SmallCNN`
    """

    def __init__(
        self,
        observation_space: spaces.Dict,
        cnn_output_dim: int = 256,
        normalized_image: bool = False,
        n_values: int | None = None,
    ) -> None:
        BaseFeaturesExtractor.__init__(self, observation_space, features_dim=1)
        self.extractors = nn.ModuleDict()
        self._features_dim = 0
        for key, part in observation_space.spaces.items():
            if is_small_picture(part, normalized_image) and min(part.shape[1:]) >= LEAST:  # type: ignore[index]
                self.extractors[key] = SmallCNN(part, cnn_output_dim, n_values)  # type: ignore[arg-type]
            elif is_image_space(part, normalized_image=normalized_image) and not is_small_picture(part, normalized_image):
                self.extractors[key] = NatureCNN(part, cnn_output_dim, normalized_image)
            else:
                self.extractors[key] = nn.Flatten()
            self._features_dim += getattr(self.extractors[key], "features_dim", None) or get_flattened_obs_dim(part)


def picture_extractor(observation_space: spaces.Space[Any], normalize_images: bool = True) -> type[BaseFeaturesExtractor]:
    """
    :param observation_space: what is observed, pictures with their channels first
    :param normalize_images: whether the policy divides by 255; if it does, pictures are of uint8 from 0 to 255 only
    :return: what CnnSHMPolicy and, for Dict observations, MultiInputSHMPolicy read it with
    """
    if isinstance(observation_space, spaces.Dict):
        is_small = any(is_small_picture(part, not normalize_images) for part in observation_space.spaces.values())
        return SmallCombinedExtractor if is_small else CombinedExtractor
    return SmallCNN if is_small_picture(observation_space, not normalize_images) else NatureCNN


class ReadsPictures(BasePolicy):
    """Put in front of a policy: :func:`picture_extractor` chooses the default features extractor."""

    def __init__(self, observation_space: spaces.Space[Any], *args: Any, **kwargs: Any) -> None:
        extractor = picture_extractor(observation_space, kwargs.get("normalize_images", True))
        kwargs.setdefault("features_extractor_class", extractor)
        super().__init__(observation_space, *args, **kwargs)


def extract(model: BaseModel, obs: PyTorchObs, features_extractor: BaseFeaturesExtractor) -> th.Tensor:
    """
    As ``model.extract_features``. Many pictures are read a part at a time, which on the CPU is faster, by a third on the way
    forward and a quarter with gradients. Those of other features extractors than SB3's and ours are not: each row might depend
    on the others, as in a batch norm.

    :param model: knows how to prepare the observations
    :param obs: observations, (N, ...)
    :param features_extractor: reads them
    :return: features, (N, features_dim)
    :raises ValueError: the features extractor does not give as many features as it says
    """
    parts = obs.values() if isinstance(obs, dict) else [obs]
    is_known = type(features_extractor) in (NatureCNN, CombinedExtractor, SmallCNN, SmallCombinedExtractor)
    if is_known and not th.compiler.is_compiling() and all(part.is_cpu for part in parts):
        split = {key: part.split(AT_A_TIME) for key, part in (obs.items() if isinstance(obs, dict) else [("", obs)])}
        pieces = [dict(zip(split, piece, strict=True)) for piece in zip(*split.values(), strict=True)]
        if len(pieces) > 1:
            read = [piece if isinstance(obs, dict) else piece[""] for piece in pieces]
            return th.cat([BaseModel.extract_features(model, piece, features_extractor) for piece in read])
    features = BaseModel.extract_features(model, obs, features_extractor)
    if features.shape[1:].numel() != features_extractor.features_dim:
        raise ValueError(
            f"{type(features_extractor).__name__} says features_dim = {features_extractor.features_dim}, and gives features "
            f"of the shape (N, {', '.join(map(str, features.shape[1:]))})"
        )
    return features
