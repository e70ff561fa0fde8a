"""How traffic is brought to a promoted version: plan, judge, rollout, route table."""
