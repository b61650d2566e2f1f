# The benchmark tool.  Included by the main Makefile, after O and the flags are known.
BENCH_SRC := $(filter-out bench/emu_timing.c,$(wildcard bench/*.c))
BENCH_OBJ := $(BENCH_SRC:%.c=$(O)/%.o)
# It times builds made elsewhere: on the machine that runs it only libc, libm and the driver need be there.
STATIC_LIBS := -ldl -static-libgcc -l:libquadmath.a $(if $(call on,OPENMP),-l:libgomp.a)
COMMIT      := $(shell git rev-parse --short HEAD 2>/dev/null)$(shell git diff --quiet HEAD -- src include 2>/dev/null || echo +)

$(O)/bench/%.o: bench/%.c $(O)/flags
	@mkdir -p $(@D); echo "  CC      $(@:$(O)/%=%)"
	$(Q)$(CC) $(TEST_FLAGS) -DBENCH_COMMIT='"$(COMMIT)"' \
	    $(if $(call on,CUDA),-DWF_TEST_CUDA -isystem $(CUDA_HOME)/include) $(DEPENDS) -c $< -o $@

$(O)/bench/bench: $(BENCH_OBJ) $(O)/tests/helpers.a $(STATIC)
	@echo "  LINK    $(@:$(O)/%=%)"
	$(Q)$(CC) $(LINK_FLAGS) $^ -o $@ $(STATIC_LIBS) -pthread $(CUDA_LIBS) -lm

bench: $(O)/bench/bench  ## time the library: a minute (ARGS="--suite bench/suites/bert.txt --peers"; ARGS=--help)
	@$< --self-test && $< $(or $(ARGS),--suite bench/suites/short.txt --quick)

ifneq ($(call on,CUDA),)
# The same program on the emulated device: for the tool's own test, no time it prints means anything.
$(EMU)/plain/bench: $(BENCH_OBJ) $(O)/bench/emu_timing.o $(O)/tests/helpers.a $(HOST_OBJ) $(CUDA_SRC:%.cu=$(EMU)/plain/%.o) $(EMU_RUNTIME_plain)
	@echo "  LINK    emu/plain/bench"
	$(Q)$(EMU_CXX_plain) $^ -o $@ $(OPENMP_FLAG) -pthread -lquadmath -lm
endif

-include $(BENCH_OBJ:.o=.d) $(O)/bench/emu_timing.d
.PHONY: bench
