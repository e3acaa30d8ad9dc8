"""The small models that all else builds on, trained on the embedded world (`world`) or fetched as published (`hub`)."""
