# shellcheck shell=bash
# What differs between clusters: cp jobs/site.example.sh jobs/site.sh, and edit the copy. Git ignores it, so that logs do
# not call the checkout changed.
#
# jobs/train.sbatch reads it when a job starts. Read it before you submit as well: Slurm takes account and partition
# from the variables SBATCH_..., unless sbatch's own options say otherwise.
#
#   source jobs/site.sh && sbatch jobs/train.sbatch --preset paper-ant
#
# A value in your environment comes first: LAUNCHER=mpirun sbatch jobs/train.sbatch ...

# export SBATCH_ACCOUNT=PROJECT
# export SBATCH_PARTITION=PARTITION
# export SBATCH_EXCLUSIVE=user                # for others see "input environment variables" in man sbatch

# module load gcc python mpi                  # as when you installed iwes_mpi

# VENV=${VENV:-.venv}                         # the virtual environment with iwes_mpi
# LAUNCHER=${LAUNCHER:-srun}                  # srun, or mpirun: that of the MPI that mpi4py was built with
# MPI_TYPE=${MPI_TYPE:-pmi2}                  # with srun: pmi2 (MPICH, Intel), pmix (Open MPI); srun --mpi=list
# LAUNCHER_FLAGS=(--cpu-bind=cores)           # more flags for srun or mpirun
# MAX_STALLS=${MAX_STALLS:-3}                 # restarts in a row without one more iteration; then the job fails
# MIN_NODES=${MIN_NODES:-1}                   # with fewer nodes left the job is requeued, else it goes on with them
# QUIET=${QUIET:-5}                           # s without news of a node after which it is looked after; 0 for never
