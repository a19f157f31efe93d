"""A pytest plugin (`-p support.sanitized`): the native module that CIERZO_NATIVE names, not the installed one."""

import importlib.util
import os
import sys

import cierzo.ops

_spec = importlib.util.spec_from_file_location("cierzo.ops._native", os.environ["CIERZO_NATIVE"])
assert _spec is not None
assert _spec.loader is not None
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
sys.modules[_spec.name] = _module
vars(cierzo.ops)["_native"] = _module
