import os, time
from tests.isolation.conftest import *
from tests.isolation import test_mutation as tm
from tests.isolation.mutants import mutants
MINE = set("""rest_of cycle_end price_for plan_tokens plan_level_change write_invoice_line carry_plan set_trial_allocation apply_level_change tell_level_change apply_scheduled renew_subscription play_subscription begin_level_change preview_level_change change_user_level undo_level_change set_upgrade_path delete_upgrade_path forget_subscription job_level_changes delete_level copy_level_terms assign_level""".split())
async def test_mine(world, superuser):
    every = [m for m in await mutants(superuser, world) if m.title and m.function.split(".")[1] in MINE]
    toll = tm.Toll(); t=time.time()
    for at in range(0, len(every), 25):
        async with tm._stage(superuser, world, "functions") as suite:
            suite._named = [(c, n) for c, n in suite._named if c in tm.CHANGES or c in tm.LEVELS or c in tm.TENANCY[:0]]
            for m in every[at:at+25]:
                async with tm.rolled_back(superuser, "mutant"):
                    await tm._break(superuser, m)
                    if not await suite.seen(m): toll.survivors.append(m)
    print(len(every), len(toll.survivors), time.time()-t)
    print("\n".join(sorted(str(m) for m in toll.survivors)))
