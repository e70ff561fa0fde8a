"""One SQL database under everything: engine, schema, migrations, audit chain, leases."""
