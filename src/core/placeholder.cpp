#include "convpass/core/rng.h"
