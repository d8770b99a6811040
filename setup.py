"""Builds the native part; everything else about the project is in pyproject.toml."""

from setuptools import setup

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:  # setuptools before 70.1 kept it in the wheel package
    from wheel.bdist_wheel import bdist_wheel  # type: ignore[import-not-found,no-redef]


class Abi3Wheel(bdist_wheel):
    """Tags the wheel for the stable ABI, which cffi's object already keeps to."""

    def finalize_options(self) -> None:
        self.py_limited_api = "cp311"
        super().finalize_options()


setup(cffi_modules=["native/build_native.py:ffibuilder"], cmdclass={"bdist_wheel": Abi3Wheel})
