"""How hypothesis is asked here: without time limits, and always the same examples but in the long version."""

from hypothesis import HealthCheck, Phase, settings

from tests.conftest import LONG

DEPLOY = "select set_engine((deploy_engine($1, $2) ->> 'engine_id')::uuid, p_default_access => 'execute')"
"""An engine of a slug and a workflow that everybody may run."""


def ours(examples: int, *, shrink: bool = True) -> settings:
    """Settings for tests whose examples are whole lives in a database."""
    phases = [Phase.explicit, Phase.generate, *([Phase.shrink] if shrink else [])]
    return settings(
        max_examples=examples,
        phases=phases,
        deadline=None,
        database=None,
        derandomize=not LONG,
        suppress_health_check=list(HealthCheck),
    )
