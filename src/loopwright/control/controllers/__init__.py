"""Background controllers: they bring what is to what should be. All state is in the ledger; a killed one resumes."""
