"""What can be said of the stages without a GPU: that they can be imported, with every name that they use."""

import importlib
import sys


def check(functions: list[str]) -> int:
    """Import each stage; the number that failed. On a bare machine splip is there only once it is built."""
    failed = 0
    for function in functions:
        module, name = function.rsplit(".", 1)
        try:
            stage = getattr(importlib.import_module(module), name)
            about = stage.__doc__ or sys.modules[module].__doc__ or ""
            print(f"{function}: {about.splitlines()[0]}")
        except ModuleNotFoundError as e:
            missing = (e.name or "").split(".")[0]
            if missing in ("splip", "torch") or e.name == "splip._C":
                print(f"{function}: not imported, {e}")
            else:
                failed += 1
                print(f"{function}: FAILED, {e}")
        except (ImportError, AttributeError, SyntaxError) as e:
            failed += "_C" not in str(e)
            print(f"{function}: {'not imported' if '_C' in str(e) else 'FAILED'}, {e}")
    return min(failed, 100)
