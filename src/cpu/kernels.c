/* All CPU kernels for one ISA and one arithmetic type. The Makefile compiles this file once for each: WF_KERNELS names
 * the table, WF_REAL is float or double, and the compiler's flags are the ISA. */
#include "layernorm_cpu.c"

#include "channelnorm_cpu.c"

#include "dropout_cpu.c"

#include "fold_cpu.c"

const struct cpu_kernels WF_KERNELS = {
#define PROBLEM(problem) .problem = problem, .problem##_workspace = problem##_workspace,
#include "ops.def"
};
