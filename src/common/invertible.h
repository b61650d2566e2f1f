/* invertible.h - whether xhat can be had again from y = xhat * factor + beta as it was stored. */
#ifndef WF_COMMON_INVERTIBLE_H
#define WF_COMMON_INVERTIBLE_H

#include <math.h>
#include <stdbool.h>

#include "hd.h"

/* How a dtype rounds: by half a unit of 2 v, relative, and not below its least number. */
struct wf_rounding {
    double v, least;
};
#define WF_F32_ROUNDING  0x1p-24, 0x1p-149
#define WF_F16_ROUNDING  0x1p-11, 0x1p-24
#define WF_BF16_ROUNDING 0x1p-8, 0x1p-133
#define WF_F64_ROUNDING  0x1p-53, 0x1p-1074

/* Rounding y has moved xhat by v |xhat|, and by v |beta / factor| and half the least number / |factor|: these are no more than
 * an eighth and a 32nd. A NaN passes, and shows in the results. */
WF_HD bool wf_invertible(double factor, double beta, struct wf_rounding y)
{
    return !(fabs(factor) < 8 * y.v * fabs(beta) || fabs(factor) < 16 * y.least);
}

#endif
