"""The method: eqs. 3 and 4 of Campos et al. (2018), and one iteration of them on all ranks."""
