"""When to train again: triggers, the policy that decides on them, and the plan. Proposes; never moves
traffic.
"""
