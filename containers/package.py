"""A Spack package to start from: untried. It belongs in the folder packages/py_iwes_mpi of a repository of your own."""

from spack.package import depends_on, license, variant
from spack_repo.builtin.build_systems.python import PythonPackage


class PyIwesMpi(PythonPackage):
    """Importance Weighted Evolution Strategies for reinforcement learning on MPI clusters."""

    # homepage, git: where your clone is
    # version("main", branch="main")

    license("MIT")

    variant("plot", default=True, description="python -m iwes_mpi.plot")

    depends_on("c", type="build")
    depends_on("python@3.11:", type=("build", "run"))
    depends_on("py-setuptools@77:", type="build")

    depends_on("mpi", type=("build", "link", "run"))
    depends_on("py-mpi4py@4.0:", type=("build", "run"))
    depends_on("py-numpy@2.0:", type=("build", "run"))
    depends_on("py-numba@0.65:", type=("build", "run"))
    depends_on("py-gymnasium@1.2:1", type=("build", "run"))
    # Spack may have an older MuJoCo, or none: then write its package first.
    depends_on("py-mujoco@3.17:4", type=("build", "run"))
    depends_on("py-h5py@3.12: ~mpi", type=("build", "run"))
    depends_on("py-pandas@2.2:", type=("build", "run"))
    depends_on("py-rich@13.7:", type=("build", "run"))
    depends_on("py-tomli-w@1.0:", type=("build", "run"))
    depends_on("py-matplotlib@3.9:", type=("build", "run"), when="+plot")
