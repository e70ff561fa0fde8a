"""What a pickle may never import, whoever approves it: names that lead from loading to running anything.

The list stands behind the allow-list of each trust record, not in its place: a name must be on the record and not here.
"""

from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING

ARRAY_WRAPPER = "joblib.numpy_pickle.NumpyArrayWrapper"
"""Joblib's stand-in for an array; the loader puts a class of its own in its place and never imports joblib for it."""

_PLAIN = frozenset((
    "bool", "bytearray", "bytes", "complex", "dict", "Ellipsis", "float", "frozenset", "int", "list",
    "NotImplemented", "object", "range", "set", "slice", "str", "tuple",
))  # fmt: skip

_MODULES = frozenset((
    "__main__", "_aix_support", "_bootsubprocess", "_ctypes", "_imp", "_io", "_operator", "_functools",
    "_osx_support", "_pickle", "_posixsubprocess", "_socket", "_sqlite3", "_ssl", "_thread", "_winapi",
    "aifc", "antigravity", "asyncio", "asyncore", "atexit", "bdb", "cProfile", "cffi", "cgi",
    "cloudpickle", "cmd", "code", "codeop", "commands", "compileall", "concurrent", "crypt", "ctypes",
    "dbm", "dill", "dis", "distutils", "doctest", "ensurepip", "faulthandler", "fcntl", "fileinput",
    "ftplib", "functools", "gc", "getpass", "glob", "grp", "http", "httplib", "httpx", "idlelib",
    "imaplib", "imp", "importlib", "inspect", "io", "lib2to3", "linecache", "logging", "loopwright",
    "marshal", "mmap", "modulefinder", "msvcrt", "multiprocessing", "netrc", "nntplib", "nt", "ntpath",
    "operator", "os", "pathlib", "pdb", "pexpect", "pickle", "pickletools", "pip", "pipes",
    "pkg_resources", "pkgutil", "platform", "poplib", "posix", "posixpath", "pprint", "profile", "pstats",
    "pty", "pwd", "py_compile", "pydoc", "pyximport", "requests", "resource", "rlcompleter", "runpy",
    "sched", "select", "selectors", "setuptools", "shelve", "shlex", "shutil", "signal", "site", "smtpd",
    "smtplib", "socket", "socketserver", "spwd", "sqlite3", "ssl", "subprocess", "symtable", "sys",
    "sysconfig", "syslog", "tarfile", "telnetlib", "tempfile", "termios", "test", "threading", "timeit",
    "tkinter", "torch", "trace", "traceback", "tracemalloc", "tty", "turtle", "types", "typing",
    "unittest", "urllib", "urllib2", "urllib3", "uuid", "venv", "warnings", "weakref", "webbrowser",
    "winreg", "wsgiref", "xml", "xmlrpc", "zipapp", "zipfile", "zipimport", "yaml",
))  # fmt: skip
"""Top-level modules of which nothing may be had."""

_PACKAGES = (
    "numpy.ctypeslib", "numpy.distutils", "numpy.f2py", "numpy.lib._datasource", "numpy.lib._npyio_impl",
    "numpy.lib.format", "numpy.lib._format_impl", "numpy.lib.npyio", "numpy.lib.utils", "numpy.testing",
    "numpy._pytesttester", "pandas.core.computation", "pandas.io", "scipy.io", "scipy._lib",
    "sklearn.datasets", "sklearn.externals", "sklearn.utils._testing", "sklearn.utils.parallel",
    "sklearn.utils._joblib",
)  # fmt: skip
"""Packages of allowed libraries that read files, compile or run what they are given."""

_NAMES = frozenset((
    "DataSource", "apply_along_axis", "apply_over_axes", "attrgetter", "call", "delayed", "eval", "exec",
    "execute", "fromfile", "fromfunction", "fromregex", "frompyfunc", "genfromtxt", "getattr",
    "import_module", "itemgetter", "load", "loads", "loadtxt", "memmap", "methodcaller", "open",
    "open_memmap", "partial", "piecewise", "popen", "read_pickle", "reduce", "runstring", "safe_eval",
    "save", "savetxt", "savez", "savez_compressed", "setattr", "spawn", "system", "tofile", "vectorize",
    "__import__", "__subclasses__", "__globals__", "__getattribute__", "__builtins__", "__reduce__",
    "__class__", "__dict__", "__code__",
))  # fmt: skip
"""Names that are refused in any module."""


def canonical(module: str, name: str) -> tuple[str, str]:
    """The names Python 3 would look up for those a pickle of Python 2 carries."""
    if (module, name) in NAME_MAPPING:
        module, name = NAME_MAPPING[module, name]
    return IMPORT_MAPPING.get(module, module), name


def denied(module: str, name: str) -> str:
    """Why this global may never be imported by a pickle, or ""."""
    full = f"{module}.{name}"
    root = module.partition(".")[0]
    if full == ARRAY_WRAPPER:
        return ""
    if not full.isascii() or not all(part.isidentifier() for part in full.split(".")):
        return "not a name"
    if "." in name:
        return "a dotted name reaches into an object"
    if root == "builtins":
        return "" if name in _PLAIN else "a builtin that can run or reach anything"
    if root in _MODULES or root == "joblib":
        return f"nothing of {root} may be had"
    if any(module == package or module.startswith(f"{package}.") for package in _PACKAGES):
        return "its package reads files or runs what it is given"
    return "a name that runs or reaches what it is given" if name in _NAMES else ""
