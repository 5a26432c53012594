import sys
from tests.simulation.plan import Plan
from tests.simulation.run import run
for seed in range(int(sys.argv[1]), int(sys.argv[2])):
    r = run(Plan.draw(seed))
    print(seed, r.steps, r.turns, r.jobs, r.starts, round(r.virtual_s,1), sum(r.faults.values()), r.failure and r.failure[:300])
    if r.failure: print(r.where[-2500:]); break
