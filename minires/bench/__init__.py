"""How fast, and how near to what the machine can do: public.

    limits()                           this machine: matrix-product rate, copy bandwidth
    cost("conv2d", (x, weight, g))     arithmetic and bytes by definition
    bound(cost, limits, dtype)         the seconds it must take here
    machine()                          the facts that go with every record
"""

from minires.bench.costs import Cost, bound, cost, cost_of
from minires.bench.limits import Limits, limits
from minires.bench.machine import machine
