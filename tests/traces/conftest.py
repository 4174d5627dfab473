from hypothesis import settings

# A test's result may not depend on how busy the machine is.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
