"""The tests: unit, properties, conformance, e2e. `support` is what they share, `conftest` what they all get."""
