"""What the application is made of: the routes and the pages of each room."""

from vanilla_saas.engines import pages as engines_pages
from vanilla_saas.engines.routes import router as engines_router
from vanilla_saas.engines.run_routes import router as engine_runs_router
from vanilla_saas.levels import pages as levels_pages
from vanilla_saas.levels.change_routes import router as level_changes_router
from vanilla_saas.levels.routes import router as levels_router
from vanilla_saas.operations import backups_pages, schedules_pages, webhooks_pages
from vanilla_saas.operations import pages as operations_pages
from vanilla_saas.operations.routes import router as operations_router
from vanilla_saas.operations.schedules_routes import router as schedules_router
from vanilla_saas.operations.webhooks_routes import router as webhooks_router
from vanilla_saas.orchestration import channel_pages
from vanilla_saas.orchestration import pages as agents_pages
from vanilla_saas.orchestration.agreement_routes import router as agreements_router
from vanilla_saas.orchestration.channel_routes import router as channels_router
from vanilla_saas.orchestration.routes import router as agents_router
from vanilla_saas.payments import pages as payments_pages
from vanilla_saas.payments.routes import router as payments_router
from vanilla_saas.providers import pages as providers_pages
from vanilla_saas.routing import pages as routing_pages
from vanilla_saas.routing.routes import router as routing_router
from vanilla_saas.tenancy import pages as tenancy_pages
from vanilla_saas.tenancy.person_routes import router as person_router
from vanilla_saas.tenancy.routes import router as tenancy_router
from vanilla_saas.tokens import pages as tokens_pages
from vanilla_saas.tokens.proof_routes import router as proof_router
from vanilla_saas.tokens.routes import router as tokens_router
from vanilla_saas.tokens.wallet_routes import router as wallet_router
from vanilla_saas.workflows import approval_pages, run_pages, schedule_pages
from vanilla_saas.workflows import pages as workflows_pages
from vanilla_saas.workflows.execution_routes import router as executions_router
from vanilla_saas.workflows.routes import router as workflows_router
from vanilla_saas.workflows.schedule_routes import router as workflow_schedules_router

ROUTERS = (
    operations_router, person_router, tenancy_router, tokens_router, wallet_router, proof_router, levels_router,
    level_changes_router, payments_router, webhooks_router, schedules_router, workflows_router,
    routing_router,
    executions_router, workflow_schedules_router, engine_runs_router, engines_router,
    agents_router, channels_router, agreements_router,
)  # fmt: skip
PAGES = tuple(
    page.ROOM
    for page in (
        tokens_pages, levels_pages, payments_pages, providers_pages, tenancy_pages, webhooks_pages, schedules_pages,
        operations_pages, backups_pages, workflows_pages, engines_pages, agents_pages, run_pages, schedule_pages,
        approval_pages, routing_pages, channel_pages,
    )
)  # fmt: skip
