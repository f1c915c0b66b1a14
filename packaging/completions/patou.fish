# The program itself completes: it knows the pools and workers of the set.
PATOU_COMPLETE=fish patou | source
