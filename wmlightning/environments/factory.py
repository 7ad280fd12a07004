"""EnvFactory: the recipe of an environment, from which one, or many side by side, are made."""

import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from datamodules.episode import Spec
from datamodules.store import EpisodeStore
from wmlightning.environments.parts import PartedVectorEnv
from wmlightning.environments.suites import find_spec, make_env, make_registered
from wmlightning.environments.vector import PixelVectorEnv
from wmlightning.environments.wrappers import Pixels
from wmlightning.recipes import Recorded


class EnvFactory(Recorded):
    """Makes environments of any registered gymnasium id: pixels as observations, [-1, 1] or one-hot actions.

    Actions of whole numbers are in [-1, 1] too, and every number has an equal share of it.

    Three families have the papers' defaults: CarRacing; ViZDoom's Take Cover, which takes one number: below -1/3 left,
    above 1/3 right, else stay (see `environments.doom`); and Atari (see `environments.atari`). A family is recognised
    by the class that makes the environment, whatever its id.

    Args:
        id: a gymnasium id, such as CarRacing-v3 or wmlightning/DummyPixels-v0; "module:id" imports module first.
        action_repeat: environment steps a decision; their rewards are summed, and only the last one is drawn.
        size: side of the square image in pixels.
        time_limit: environment steps after which an episode is truncated; None keeps the id's registered limit, or the
            suite's default (VizdoomTakeCover: 2,100; Atari: 108,000).
        crop: what to keep of the picture, rows [first, last) or rows and columns [first, last, first, last); "auto" is
            the suite's default (CarRacing: [0, 84], which cuts the indicators off; others: all), None keeps all.
        ignore_termination: step past the end until the time limit, as the World Models collection did; rewards after
            the end are whatever the environment gives.
        pixels: where pictures come from: the key of an observation entry, "render" for `rgb_array` rendering, or None
            for the native observation if it is an image at least 32 pixels a side (see `environments.observations`),
            and rendering otherwise. What is not used is named once.
        kwargs: further arguments of the environment itself, such as {lap_complete_percent: 1.0}.
        gray: images of one channel, the luminance, instead of three.
    """

    def __init__(
        self,
        id: str,
        action_repeat: int = 1,
        size: int = 64,
        time_limit: int | None = None,
        crop: list[int] | str | None = "auto",
        ignore_termination: bool = False,
        pixels: str | None = None,
        kwargs: dict[str, Any] | None = None,
        gray: bool = False,
    ) -> None:
        for name, value in (("action_repeat", action_repeat), ("size", size), ("time_limit", time_limit)):
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value} but must be at least 1")
        if not (crop is None or crop == "auto" or (isinstance(crop, list | tuple) and _is_crop(crop))):
            raise ValueError(
                f"crop is {crop!r} but wants auto, null, rows [first, last) such as [0, 84], or rows and columns such "
                "as [0, 84, 10, 80]"
            )
        self.id, self.action_repeat, self.size, self.channels = id, action_repeat, size, 1 if gray else 3
        self._make_arguments = {
            "id": id,
            "action_repeat": action_repeat,
            "size": size,
            "time_limit": time_limit,
            "crop": crop,
            "ignore_termination": ignore_termination,
            "pixels": pixels,
            "kwargs": kwargs,
            "gray": gray,
        }
        self._spec: Spec | None = None
        self._time_limit: int | None = None
        self._conventions: str | None = None
        self._noticed = False

    def make(self) -> Pixels:
        """One environment: observation {"image": uint8 (size, size, channels)}, action Box, info["env_steps"].

        The first one warns of what the user may not expect of it, such as observations that are not used.
        """
        env = make_env(**self._make_arguments)
        if not self._noticed:
            self._noticed = True
            for notice in env.notices:
                warnings.warn(notice, stacklevel=2)
        return env

    @property
    def spec(self) -> Spec:
        """Shapes and kinds of observations and actions. The first call builds an environment for a moment."""
        if self._spec is None:
            env = self.make()
            self._spec = Spec(
                {"image": ((self.size, self.size, self.channels), "uint8")},
                int(env.action_space.shape[0]),  # type: ignore[index]
                # Actions are in [0, 1] where one of several is chosen and in [-1, 1] elsewhere.
                discrete=bool((env.action_space.low == 0).all()),  # type: ignore[attr-defined]
            )
            self._time_limit = env.get_wrapper_attr("time_limit") if env.has_wrapper_attr("time_limit") else None
            self._conventions = "; ".join(env.conventions) or None
            env.close()
        return self._spec

    @property
    def time_limit(self) -> int | None:
        """Environment steps of the longest episode that there can be; None without a time limit."""
        _ = self.spec
        return self._time_limit

    @property
    def conventions(self) -> str | None:
        """Names the corrections since earlier versions that concern this environment, or None; episodes record it.

        Where a way of acting, looking or ending was corrected, stores from before must not be mixed with later ones.
        Only environments that the correction concerns have a convention, so that the stores of others go on.
        """
        _ = self.spec
        return self._conventions

    @property
    def longest(self) -> int | None:
        """Rows of the longest episode that there can be, the first frame's included; None without a time limit."""
        return None if self.time_limit is None else math.ceil(self.time_limit / self.action_repeat) + 1

    def vector(self, num_envs: int, num_workers: int = 0, timeout: float = 120.0) -> PixelVectorEnv:
        """num_envs of them side by side, in num_workers processes; 0 keeps them in this one."""
        return PixelVectorEnv(*self._vector_arguments(num_envs, num_workers, timeout))

    def parted(
        self, num_envs: int, num_workers: int, max_segment: int, seed_of: Callable[[int], int], first: int = 0
    ) -> PartedVectorEnv:
        """As `vector`, for long episodes in parts of at most max_segment decisions; see `PartedVectorEnv`."""
        arguments = self._vector_arguments(num_envs, num_workers, 120.0)
        return PartedVectorEnv(*arguments, max_segment=max_segment, seed_of=seed_of, first=first)

    def check_policy(self, policy: Any, what: str) -> None:
        """Checks that a policy acts with as many numbers as the environment takes, if it has an `action_size`.

        Args:
            policy: a policy, or None, which passes.
            what: names it in the error.

        Raises:
            ValueError: if it does not.
        """
        size, wanted = getattr(policy, "action_size", None), self.spec.action_size
        if size not in (None, wanted):
            raise ValueError(
                f"{what} acts with {size} numbers but {self.id} takes {wanted}: set its action_size to {wanted}"
            )

    def check_recorded(self, store: EpisodeStore) -> None:
        """Checks that a store's first episode was recorded in this environment, as far as its metadata tell.

        Raises:
            ValueError: if it was played in another environment or with another action repeat.
        """
        metadata = store.contents(store.listing[0]).metadata if len(store) else {}
        for key, wanted in (("environment", self.id), ("action_repeat", self.action_repeat)):
            found = metadata.get(key, wanted)
            if found != wanted:
                raise ValueError(
                    f"{store.path} was recorded with {key} {found} but the agent has {wanted}: give it the environment "
                    "of that run, or data.path another folder"
                )
        # Stores of other programs say nothing of an environment, and are taken.
        if "environment" in metadata and metadata.get("conventions") != self.conventions:
            raise ValueError(
                f"{store.path} was recorded with conventions {metadata.get('conventions')} but {self.id} has "
                f"{self.conventions} now: collect it again, or give data.path another folder"
            )

    def _vector_arguments(self, num_envs: int, num_workers: int, timeout: float) -> tuple:
        description = {
            "environment": self.id,
            "action_repeat": self.action_repeat,
            "discrete": self.spec.discrete,
        }
        if self.conventions is not None:
            description["conventions"] = self.conventions
        make = partial(make_registered, find_spec(self.id), self._make_arguments)
        return make, num_envs, num_workers, timeout, description


def _is_crop(crop: Sequence[int]) -> bool:
    pairs = [crop[k : k + 2] for k in range(0, len(crop), 2)]
    return len(crop) in (2, 4) and all(0 <= first < last for first, last in pairs)
