"""Jobs that are coroutines of this program, by the name of their row in `schedules`; SQL jobs need no line here."""

from collections.abc import Mapping

from vanilla_saas.operations.log_export import export_logs
from vanilla_saas.operations.schedules import Job

JOBS: Mapping[str, Job] = {"log_export": export_logs}
