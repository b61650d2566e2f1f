#include "untyped.h"

#define UNTYPED(operation)                                                                                             \
    wf_status call_##operation(const void *what, const void *with, const wf_exec *where)                               \
    {                                                                                                                  \
        return wf_##operation(what, with, where);                                                                      \
    }                                                                                                                  \
    size_t workspace_##operation(const void *what, wf_backend backend)                                                 \
    {                                                                                                                  \
        return wf_##operation##_workspace(what, backend);                                                              \
    }
FOR_EACH_OPERATION(UNTYPED)
