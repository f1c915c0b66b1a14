# The program itself completes: it knows the pools and workers of the set.
source <(PATOU_COMPLETE=bash patou)
