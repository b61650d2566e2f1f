/* Dropout, forward and backward. No mask is kept: (seed, offset) says which elements were dropped, here and on every
 * other back-end; every call takes an offset of its own, the backward pass the one of its forward pass. */
#include <stdio.h>
#include <welford.h>

enum { COUNT = 12 };

int main(void)
{
    float x[COUNT], y[COUNT], dy[COUNT], dx[COUNT];
    for (int i = 0; i < COUNT; i++) {
        x[i] = (float)(i + 1);
        dy[i] = 1;
    }
    wf_dropout what = {.size = sizeof what, .n = 1, .c = 1, .hw = COUNT, .p = 0.25};
    wf_exec where = {.size = sizeof where, .backend = WF_CPU};
    for (unsigned step = 0; step < 2; step++) {
        wf_dropout_args forward = {.size = sizeof forward, .x = x, .y = y, .seed = 42, .offset = step};
        wf_dropout_args backward = {.size = sizeof backward, .x = dy, .y = dx, .seed = 42, .offset = step};
        if (wf_dropout_forward(&what, &forward, &where) || wf_dropout_backward(&what, &backward, &where)) {
            fprintf(stderr, "%s\n", wf_error_detail());
            return 1;
        }
        printf("step %u:  y ", step);
        for (int i = 0; i < COUNT; i++)
            printf(" %6.2f", y[i]);
        printf("\n        dx ");
        for (int i = 0; i < COUNT; i++)
            printf(" %6.2f", dx[i]);
        printf("\n");
    }
    return 0;
}
