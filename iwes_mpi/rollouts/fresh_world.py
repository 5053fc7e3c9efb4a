"""A new Box2D world for every episode of BipedalWalker, so that an episode does not depend on those before it."""

from typing import Any

import gymnasium

_MODULE = "gymnasium.envs.box2d.bipedal_walker"


class FreshWorld(gymnasium.Wrapper[Any, Any, Any, Any]):
    """BipedalWalker with a new world at each reset, as Gymnasium's LunarLander has it since its version 3.

    BipedalWalker empties its world and fills it again; what Box2D remembers then changes the next episode. Which ones a
    rank ran before must not matter.
    """

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """See `gymnasium.Env.reset`."""
        inner: Any = self.unwrapped
        inner._destroy()
        inner.world = type(inner.world)()
        return self.env.reset(seed=seed, options=options)  # type: ignore[no-any-return]


def with_fresh_worlds(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    """The environment, wrapped if it is a BipedalWalker."""
    kinds = type(env.unwrapped).__mro__
    return FreshWorld(env) if any(kind.__module__ == _MODULE for kind in kinds) else env
