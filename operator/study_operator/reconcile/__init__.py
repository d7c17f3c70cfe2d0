"""One tick of a study: observe, settle, plan, act, record."""
