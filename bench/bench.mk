# The benchmark tool.  Included by the main Makefile, after O and the flags are known.
BENCH_SRC := $(filter-out bench/emu_timing.c bench/fake_cudnn.c,$(wildcard bench/*.c))
BENCH_OBJ := $(BENCH_SRC:%.c=$(O)/%.o) $(O)/tests/helpers.a
BENCH_CU  := $(if $(call on,CUDA),$(patsubst %.cu,$(O)/%.o,$(wildcard bench/*.cu)))
# It times builds made elsewhere: on the machine that runs it only libc, libm and the driver need be there.
STATIC_LIBS := -ldl $(if $(findstring clang,$(CC))$(KIND),$(OPENMP_FLAG) -lquadmath,-static-libgcc -l:libquadmath.a \
               $(if $(call on,OPENMP),-l:libgomp.a))
COMMIT      := $(shell git rev-parse --short HEAD 2>/dev/null)$(shell git diff --quiet HEAD -- src include 2>/dev/null || echo +)

$(O)/bench/%.o: bench/%.c $(O)/flags
	@mkdir -p $(@D); echo "  CC      $(@:$(O)/%=%)"
	$(Q)$(CC) $(TEST_FLAGS) $(if $(call on,CUDA),-DWF_TEST_CUDA -isystem $(CUDA_HOME)/include) $(DEPENDS) -c $< -o $@

# The commit stands in one object, which is made again when the commit changes, and only then.
$(O)/bench/commit: FORCE
	@mkdir -p $(@D); echo '$(COMMIT)' | cmp -s - $@ || echo '$(COMMIT)' > $@
$(O)/bench/environment.o: TEST_FLAGS += -DBENCH_COMMIT='"$(COMMIT)"'
$(O)/bench/environment.o: $(O)/bench/commit

# As a caller would compile loops of his own.
$(O)/bench/loops.o: TEST_FLAGS += -O3 $(OPENMP_FLAG) $(if $(OPENMP_FLAG),,-Wno-unknown-pragmas)

$(O)/bench/%.o: bench/%.cu $(O)/flags
	@mkdir -p $(@D); echo "  NVCC    $(@:$(O)/%=%)"
	$(Q)$(NVCC) $(filter-out -Xptxas -v,$(NVCC_FLAGS)) -c $< -o $@

$(O)/bench/bench: $(BENCH_OBJ) $(BENCH_CU) $(STATIC) | $(O)/bench/libquiet.so
	@echo "  LINK    $(@:$(O)/%=%)"
	$(Q)$(CC) $(LINK_FLAGS) $^ -o $@ $(STATIC_LIBS) -pthread $(CUDA_LIBS) -lm

# What torch_peer.py needs of C.
$(O)/bench/libquiet.so: bench/quiet.c bench/quiet.h
	@mkdir -p $(@D); echo "  LINK    $(@:$(O)/%=%)"
	$(Q)$(CC) -O2 -shared -fPIC $(WARNINGS) $(CFLAGS) $< -o $@

bench: $(O)/bench/bench  ## time the library: a minute (ARGS="--suite bench/suites/bert.txt --peers"; ARGS=--help)
	@$< --self-test && $< $(or $(ARGS),--suite bench/suites/short.txt --quick)

bench-instructions: $(O)/bench/bench  ## instructions per element by callgrind: the same on a busy machine
	@$(PYTHON) bench/instructions.py $< $(ARGS)

ifneq ($(call on,CUDA),)
# The same program on the emulated device: for the tool's own test, no time it prints means anything.
$(EMU)/plain/bench: $(BENCH_OBJ) $(O)/bench/emu_timing.o $(HOST_OBJ) $(CUDA_SRC:%.cu=$(EMU)/plain/%.o) $(EMU_RUNTIME_plain)
	@echo "  LINK    emu/plain/bench"
	$(Q)$(EMU_CXX_plain) -rdynamic $^ -o $@ $(OPENMP_FLAG) -pthread -lquadmath -lm
endif

# Computes what the real one does, on the emulated device.
FAKE_CUDNN := $(O)/bench/fake/libcudnn.so.9
$(FAKE_CUDNN): bench/fake_cudnn.c $(O)/flags
	@mkdir -p $(@D); echo "  LINK    $(@:$(O)/%=%)"
	$(Q)$(CC) $(filter-out -Iinclude -Itests,$(TEST_FLAGS)) -Wno-deprecated-declarations $(if $(call on,CUDA),-isystem $(CUDA_HOME)/include) \
	    -shared -fPIC $< -o $@ -lm

check-bench: $(O)/bench/bench $(if $(call on,CUDA),$(EMU)/plain/bench $(FAKE_CUDNN)) | all  ## the benchmark tool does what it says
	@PYTHON=$(PYTHON) bench/check $^
check: $(if $(PARTIAL),,check-bench)

-include $(BENCH_SRC:%.c=$(O)/%.d) $(O)/bench/emu_timing.d
.PHONY: bench bench-instructions check-bench
