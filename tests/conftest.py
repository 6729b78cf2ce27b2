"""For all tests: hypothesis minds no clock. A busy machine may take seconds for what takes milliseconds."""

from hypothesis import HealthCheck, settings

settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")
