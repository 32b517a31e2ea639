"""Private parts of dependencies, a module for each: why each is needed, and the public API that would replace it.

Nothing else in the package touches a private part. `tests/compat` has a contract test for each entry, which says
clearly what a new version of the dependency has moved.
"""
