"""The default lifecycle of a project: data → features → training → bundle → gates → version."""
