# welford: normalization and dropout kernels.  `make help` lists the targets and variables.

BUILD   ?= build
PREFIX  ?= /usr/local
LIBDIR  ?= $(PREFIX)/lib
DESTDIR ?=
OPENMP  ?= 1
NVCC    ?= nvcc
CFLAGS  ?=
PYTHON  ?= /usr/bin/python3
V       ?= 0

SHELL    := /bin/bash -o pipefail
# A job for each core, unless the command line says otherwise; what a check prints stays together.
ifeq ($(MAKELEVEL),0)
MAKEFLAGS += -j$(shell nproc) $(if $(filter check,$(MAKECMDGOALS)),--output-sync=target)
endif
Q        := $(if $(filter 1,$(V)),,@)
on        = $(filter 1,$($1))
MACHINE  := $(shell $(CC) -dumpmachine 2>/dev/null || uname -m)
X86      := $(filter x86_64%,$(MACHINE))
HEX      := $(shell sed -n 's/^.define WF_VERSION 0x\(..\)\(..\)\(..\).*/0x\1 0x\2 0x\3/p' include/welford.h)
VERSION  := $(shell printf '%d.%d.%d' $(HEX))
MAJOR    := $(firstword $(subst ., ,$(VERSION)))

# Each kind of build has its own folder, so that one does not rebuild the other.
KIND     := $(strip $(if $(call on,ASAN),asan) $(if $(call on,UBSAN),ubsan) $(if $(call on,TSAN),tsan) \
            $(if $(call on,COVERAGE),coverage) $(if $(call on,FUZZ),fuzz))
empty    :=
comma    := ,
O        := $(BUILD)$(if $(KIND),/$(subst $(empty) ,-,$(KIND)))

# CUDA: 1 where nvcc is found; the sanitizers' and the coverage builds are of the host's code.
ifeq ($(KIND),)
CUDA ?= $(if $(shell command -v $(NVCC)),1,0)
else
override CUDA := 0
endif

# ---- flags ----

ifneq ($(call on,TSAN)$(call on,FUZZ),)
override OPENMP := 0    # libgomp's own synchronisation is invisible to TSan; libFuzzer wants one thread
endif

KIND_FLAGS := $(if $(KIND),-g -fno-omit-frame-pointer) $(if $(call on,ASAN),-fsanitize=address) \
              $(if $(call on,UBSAN),-fsanitize=undefined -fno-sanitize-recover=all) \
              $(if $(call on,TSAN),-fsanitize=thread) $(if $(call on,COVERAGE),--coverage -fprofile-abs-path -fprofile-update=atomic) \
              $(if $(call on,FUZZ),-fsanitize=address$(comma)undefined -fno-sanitize-recover=all)
# gcc cannot know that a row has an element, so it takes a tile's buffer for uninitialised (valgrind looks instead); clang may
# decline to vectorise a loop that asks for it, under sanitizers above all: slower, not wrong.
WARNINGS   := -Wall -Wextra -Werror $(if $(findstring clang,$(CC)),-Wno-pass-failed,-Wno-maybe-uninitialized)
DEPENDS    := -MMD -MP
# Asserts check the back-ends' own assumptions; a released library does not abort, so only the checking builds have them.
NDEBUG     := $(if $(filter-out coverage,$(KIND)),,-DNDEBUG)
OPTIMISE   := $(if $(call on,COVERAGE),-O1,-O3)

LIB_FLAGS  := -std=gnu11 $(OPTIMISE) -fPIC -ffp-contract=off -fno-math-errno -fno-trapping-math -fvisibility=hidden \
              -fopenmp-simd $(NDEBUG) $(WARNINGS) $(KIND_FLAGS) $(if $(call on,FUZZ),-fsanitize=fuzzer-no-link) \
              -Iinclude -Isrc $(CFLAGS)
# The oracle uses __float128 by quadmath.h, which is gcc's; clang finds it behind its own headers, with one builtin to map.
QUADMATH   := $(if $(findstring clang,$(CC)),-idirafter $(shell gcc -print-file-name=include) -D__builtin_huge_valq=__builtin_huge_val)
TEST_FLAGS := -std=gnu11 -O2 -g -ffp-contract=off -pthread $(WARNINGS) $(KIND_FLAGS) -Iinclude -Itests $(QUADMATH) $(CFLAGS)
DEMO_FLAGS := -std=gnu11 -O3 -fno-math-errno -pthread $(WARNINGS) $(KIND_FLAGS) -Iinclude $(CFLAGS)
LINK_FLAGS := $(KIND_FLAGS) $(CFLAGS) $(LDFLAGS)

ifeq ($(OPENMP),1)
OPENMP_FLAG  := -fopenmp
PRIVATE_LIBS := -l$(if $(findstring clang,$(CC)),omp,gomp) -lm
else
PRIVATE_LIBS := -lm
endif

# CUDA: code for each of these architectures, PTX of the last. No contraction: the emulator has none, and the bits are its.
CUDA_ARCHS ?= 90
ifneq ($(call on,CUDA),)
CUDA_HOME  := $(patsubst %/bin/nvcc,%,$(realpath $(shell command -v $(NVCC))))
CUDA_LIB   := $(firstword $(wildcard $(CUDA_HOME)/lib64 $(CUDA_HOME)/targets/*/lib))
CUDA_LIBS  := -L$(CUDA_LIB) -lcudart_static -ldl -lrt -lpthread
NVCC_FLAGS := -std=c++17 -O3 -fmad=false --threads 0 -Werror all-warnings -Xptxas -v -Iinclude -Isrc \
              $(foreach arch,$(CUDA_ARCHS),-gencode arch=compute_$(arch),code=sm_$(arch)) \
              -gencode arch=compute_$(lastword $(CUDA_ARCHS)),code=compute_$(lastword $(CUDA_ARCHS)) \
              -DWF_CUDA_ARCH_MIN=$(firstword $(CUDA_ARCHS)) $(NDEBUG) \
              -Xcompiler -Wall,-Wextra,-Wno-unknown-pragmas,-fPIC,-fvisibility=hidden,-fno-exceptions,-fno-rtti,-fno-threadsafe-statics
PRIVATE_LIBS += $(CUDA_LIBS)
endif

# The kernels: one source, an object per instruction set and arithmetic. None has FMA: contraction would change bits.
ISAS ?= baseline $(if $(X86),avx2 avx512)
ISA_baseline :=
ISA_avx2     := -mavx2 -mf16c
ISA_avx512   := -mavx512f -mavx512bw -mavx512dq -mavx512vl -mf16c -mprefer-vector-width=512
REAL_f32     := float
REAL_f64     := double
ifeq ($(filter baseline,$(ISAS)),)
$(error ISAS must name baseline)
endif
CPU_FLAGS := $(OPENMP_FLAG) $(if $(filter avx2,$(ISAS)),-DWF_HAVE_AVX2) $(if $(filter avx512,$(ISAS)),-DWF_HAVE_AVX512)

# ---- what is built ----

KERNELS  := $(foreach isa,$(ISAS),$(foreach real,f32 f64,$(O)/src/cpu/kernels_$(isa)_$(real).o))
HOST_SRC := $(wildcard src/*.c) src/cpu/cpu.c $(if $(call on,CUDA),,src/cuda/no_cuda.c)
HOST_OBJ := $(HOST_SRC:%.c=$(O)/%.o) $(KERNELS)
CUDA_SRC := $(if $(call on,CUDA),$(wildcard src/cuda/*.cu))
LIB_OBJ  := $(HOST_OBJ) $(CUDA_SRC:%.cu=$(O)/%.o)
STATIC   := $(O)/libwelford.a
SHARED   := $(O)/libwelford.so.$(VERSION)
LINKS    := $(O)/libwelford.so.$(MAJOR) $(O)/libwelford.so
TEST_OBJ := $(patsubst %.c,$(O)/%.o,$(wildcard tests/*.c tests/onnx/*.c) $(if $(call on,CUDA),tests/emu/device_call.c))
CONTRACT := $(if $(call on,CUDA),$(O)/tests/emu/correct.cu.o $(O)/tests/emu/run_case.cu.o)
REPLAY   := $(O)/tests/fuzz/fuzz_replay
HELPERS  := $(patsubst %.c,$(O)/%.o,$(filter-out tests/main.c tests/test_%.c,$(wildcard tests/*.c)))
FINDS    := $(wildcard tests/fuzz/corpus)
FUZZ_OBJ := $(filter-out $(REPLAY).o,$(patsubst %.c,$(O)/%.o,$(wildcard tests/fuzz/*.c)))
DEMO_OBJ := $(patsubst %.c,$(O)/%.o,$(wildcard examples/demo/*.c))
EXAMPLES := $(patsubst %.c,$(O)/%,$(wildcard examples/*.c))

all: $(STATIC) $(SHARED) $(LINKS)  ## the library, static and shared (the default)

# ---- the library ----

# Rebuild when a flag or the compiler changes, not only when a file does.
FLAGS_TEXT = $(CC) $(shell $(CC) -dumpversion 2>/dev/null) $(LIB_FLAGS) $(CPU_FLAGS) $(LINK_FLAGS) $(ISAS) $(NVCC_FLAGS)
$(O)/flags: FORCE | setup
	@mkdir -p $(@D); echo '$(FLAGS_TEXT)' | cmp -s - $@ || echo '$(FLAGS_TEXT)' > $@

$(O)/src/%.o: src/%.c $(O)/flags
	@mkdir -p $(@D); echo "  CC      $(@:$(O)/%=%)"
	$(Q)$(CC) $(LIB_FLAGS) $(if $(filter src/cpu/cpu.c,$<),$(CPU_FLAGS)) $(DEPENDS) -c $< -o $@

define kernel
$(O)/src/cpu/kernels_$1_$2.o: src/cpu/kernels.c $(O)/flags
	@mkdir -p $$(@D); echo "  CC      $$(@:$(O)/%=%)"
	$(Q)$(CC) $(LIB_FLAGS) $(ISA_$1) -DWF_KERNELS=wf_kernels_$1_$2 -DWF_REAL=$(REAL_$2) $(DEPENDS) -c $$< -o $$@
endef
$(foreach isa,$(ISAS),$(foreach real,f32 f64,$(eval $(call kernel,$(isa),$(real)))))

# A kernel that spills registers to memory is a mistake: the build fails.
$(O)/src/cuda/%.o: src/cuda/%.cu $(O)/flags
	@mkdir -p $(@D); echo "  NVCC    $(@:$(O)/%=%)"
	$(Q)$(NVCC) $(NVCC_FLAGS) -MMD -MP -MF $(@:.o=.d) -c $< -o $@ > $@.ptxas 2>&1 || { grep -v '^ptxas info' $@.ptxas; exit 1; }
	@! grep -B 2 -E '[1-9][0-9]* bytes spill' $@.ptxas || { echo "$<: registers spill"; rm -f $@; exit 1; }

$(O)/tests/emu/%.cu.o: tests/emu/%.cu $(O)/flags
	@mkdir -p $(@D); echo "  NVCC    $(@:$(O)/%=%)"
	$(Q)$(NVCC) $(NVCC_FLAGS) -Isrc/cuda/prim -MMD -MP -MF $(@:.o=.d) -c $< -o $@ > $@.ptxas 2>&1 || { cat $@.ptxas; exit 1; }

$(STATIC): $(LIB_OBJ)
	@echo "  AR      $(@:$(O)/%=%)"; rm -f $@
	$(Q)$(AR) rcsD $@ $(LIB_OBJ)

$(SHARED): $(LIB_OBJ) src/welford.map Makefile
	@echo "  LINK    $(@:$(O)/%=%)"
	$(Q)$(CC) -shared -Wl,-soname,libwelford.so.$(MAJOR) -Wl,--version-script=src/welford.map \
	    -Wl,-z,now,-z,relro,--as-needed$(if $(KIND),,$(comma)--no-undefined) $(LINK_FLAGS) $(LIB_OBJ) -o $@ $(OPENMP_FLAG) $(CUDA_LIBS) -lm

$(O)/libwelford.so.$(MAJOR): $(SHARED)
	@ln -sf $(notdir $<) $@
$(O)/libwelford.so: $(O)/libwelford.so.$(MAJOR)
	@ln -sf $(notdir $<) $@

# ---- tests ----

# passive: idle OpenMP threads sleep. They would spin, which on a busy machine costs ten times the tests themselves. And
# time limits are for tests that hang, not for a core that builds something else meanwhile.
RUN_CHECK = OMP_WAIT_POLICY=passive CK_TIMEOUT_MULTIPLIER=$(if $(call on,VALGRIND),50,$(or $(CK_TIMEOUT_MULTIPLIER),4)) \
            $(if $(call on,QUICK),WELFORD_TEST_QUICK=1) $(if $(call on,TSAN),CK_FORK=no) \
            $(if $(call on,VALGRIND),valgrind -q --error-exitcode=9) $(O)/tests/check $(SUITES) $(ARGS)

PARTIAL  := $(KIND)$(SUITES)$(ARGS)$(call on,VALGRIND)
check: $(O)/tests/check $(if $(PARTIAL),,$(O)/check.log check-header check-readme check-fuzz check-install)  ## build and run every test (SUITES="layernorm api", QUICK=1 for some)
	@$(if $(PARTIAL),$(RUN_CHECK),cat $(O)/check.log)
	$(if $(call on,CUDA),,@echo "CUDA: SKIPPED (no CUDA back-end in this build)"; [ "$(CI)" != true ] || [ -n "$(KIND)" ])

# The longest of the tests, beside which all else is built and run; what it says comes last.
$(O)/check.log: $(O)/tests/check FORCE
	@$(RUN_CHECK) > $@ 2>&1 || { cat $@; exit 1; }

# ---- the CUDA back-end: the same kernels on the emulator, or on a GPU ----

CUDA_SUITES ?= layernorm rmsnorm residual from_output quantized ending modulation groupnorm instancenorm batchnorm \
               dropout dropout_fused fold random

ifneq ($(call on,CUDA),)
include tests/emu/emu.mk
EMU_LIBS    = $$(pkg-config --libs check) $(if $(OPENMP_FLAG),-lgomp) -pthread -lquadmath -lm
EMU_PROOFS := $(patsubst %.c,$(O)/%.o,$(wildcard tests/emu/*.c))

define emu_program
$(EMU)/$1/src/cuda/%.o: src/cuda/%.cu
	@mkdir -p $$(@D); echo "  CXX     emu/$1/$$<"
	$$(Q)$(EMU_CXX_$1) $(EMU_FLAGS_$1) -Wno-unknown-pragmas $$(DEPENDS) -x c++ -c $$< -o $$@
$(EMU)/$1/check_cuda: $(EMU_PROOFS) $(O)/tests/helpers.a $(HOST_OBJ) $(CUDA_SRC:%.cu=$(EMU)/$1/%.o) $(EMU_RUNTIME_$1)
	@echo "  LINK    emu/$1/check_cuda"
	$$(Q)$(EMU_CXX_$1) $(EMU_LINK_$1) $$^ -o $$@ $$(EMU_LIBS)
-include $(CUDA_SRC:%.cu=$(EMU)/$1/%.d)
endef
$(foreach mode,plain asan tsan,$(eval $(call emu_program,$(mode))))

$(EMU)/plain/check: $(TEST_OBJ) $(CONTRACT:$(O)/tests/emu/%=$(EMU)/plain/%) $(HOST_OBJ) $(CUDA_SRC:%.cu=$(EMU)/plain/%.o) $(EMU_RUNTIME_plain)
	@echo "  LINK    emu/plain/check"
	$(Q)$(EMU_CXX_plain) $^ -o $@ $(EMU_LIBS)

check-cuda: $(EMU)/plain/check  ## the suites of operations that have kernels, on the emulator, in three orders of threads
	@echo "CUDA: emulated, $(CUDA_SUITES)"
	@WELFORD_TEST_QUICK=1 WELFORD_TEST_BACKEND=cuda $< $(CUDA_SUITES) bits
	@for order in "reverse resident=2" "random seed=1 resident=3 threads=2"; do \
	    WELFORD_EMU="$$order" WELFORD_TEST_QUICK=1 WELFORD_TEST_BACKEND=cuda $< layernorm groupnorm dropout || exit 1; done

check-cuda-asan: $(EMU)/asan/check_cuda  ## small cases of every variant, the kernels under ASan and UBSan
	@echo "CUDA: emulated under ASan and UBSan"; WELFORD_TEST_FEW_DTYPES=1 $< cuda_sanitized > $(EMU)/asan.log || { tail -n 40 $(EMU)/asan.log; exit 1; }

check-cuda-tsan: $(EMU)/tsan/check_cuda  ## the same under clang's TSan
	@echo "CUDA: emulated under TSan"; WELFORD_TEST_FEW_DTYPES=1 CK_FORK=no TSAN_OPTIONS=halt_on_error=1 $< cuda_sanitized > $(EMU)/tsan.log || \
	    { tail -n 40 $(EMU)/tsan.log; exit 1; }

check-cuda-proofs: $(EMU)/plain/check_cuda  ## what only the emulator shows: bytes moved, schedules, failing calls
	@$< $(ARGS)

meter: $(EMU)/plain/check_cuda  ## what the CUDA kernels move: prints the table and keeps it in docs/meter.md
	@$< --meter | tee docs/meter.md

# Elsewhere:  WELFORD_TEST_QUICK=1 build/tests/check --gpu SUITE...  and  tests/tools/sanitize-gpu build/tests/check SUITE...
GPU_SUITES = $(CUDA_SUITES) bits primitives gpu gpu_large
check-gpu: $(O)/tests/check  ## the same on a GPU, a process per suite, all at once; SKIP where there is none (QUICK=0: every case)
	@$(if $(filter 0,$(QUICK)),,WELFORD_TEST_QUICK=1) OMP_WAIT_POLICY=passive $< --gpu $(GPU_SUITES)

sanitize-gpu: $(O)/tests/check  ## compute-sanitizer's four tools over a part of the same
	@tests/tools/sanitize-gpu $< $(GPU_SUITES)

check: $(if $(PARTIAL),,check-emu check-cuda check-cuda-proofs check-cuda-asan check-cuda-tsan)
endif

run-check: $(O)/tests/check
	@$(RUN_CHECK)

check-header:  ## the header is C99 and C++11, without a warning
	@for lang in "c -std=c99" "c++ -std=c++11"; do \
	    printf '#include "welford.h"\n#include "welford.h"\n' | \
	    $(CC) -x $$lang -Wall -Wextra -pedantic -Werror -Iinclude -fsyntax-only - || exit 1; \
	done; echo "header: C99 and C++11, no warnings"

check-readme: $(O)/readme_example  ## README's example compiles and runs
	@$< > /dev/null && echo "README example: compiled and run"

check-install: all  ## install, use from outside by pkg-config and CMake, uninstall
	@MAKE="$(MAKE)" CC="$(CC)" CXX="$(CXX)" tests/tools/check-install $(O) $(VERSION) $(OPENMP)

check-aarch64: $(O)/tests/smoke  ## the same calls on aarch64 (cross gcc, qemu-user) give the same bits
	@$(MAKE) --no-print-directory BUILD=$(BUILD)/aarch64 CC=aarch64-linux-gnu-gcc OPENMP=0 LDFLAGS=-static \
	    $(BUILD)/aarch64/tests/smoke
	@$(O)/tests/smoke > $(O)/smoke.x86_64
	@qemu-aarch64 $(BUILD)/aarch64/tests/smoke > $(O)/smoke.aarch64
	@diff $(O)/smoke.x86_64 $(O)/smoke.aarch64 && echo "aarch64: $$(wc -l < $(O)/smoke.aarch64) results, the same bits as here"

check-torch: all  ## compare every operation with PyTorch (Debian's python3-torch, or another by PYTHON=)
	@$(PYTHON) tests/torch/check_torch.py $(O)/libwelford.so $(ARGS)

# Static where there is a choice: the program may run where only the driver is.
static     = $(if $(wildcard $(shell gcc -print-file-name=lib$1.a)),-l:lib$1.a,-l$1)
CHECK_LIBS = $(filter-out -lsubunit,$(shell pkg-config --libs check)) -Wl,--as-needed $(call static,subunit) $(call static,quadmath) \
             $(if $(filter -lgomp,$(PRIVATE_LIBS)),$(call static,gomp))
$(O)/tests/check: $(TEST_OBJ) $(CONTRACT) $(STATIC)
	@echo "  LINK    $(@:$(O)/%=%)"
	$(Q)$(CC) $(LINK_FLAGS) $^ -o $@ $(CHECK_LIBS) $(OPENMP_FLAG) -pthread $(CUDA_LIBS) -lm

$(O)/tests/smoke: $(O)/tests/aarch64/smoke.o $(O)/tests/untyped.o $(STATIC)
	@echo "  LINK    $(@:$(O)/%=%)"
	$(Q)$(CC) $(LINK_FLAGS) $^ -o $@ $(OPENMP_FLAG) $(CUDA_LIBS) -lm

$(O)/tests/%.o: tests/%.c $(O)/flags
	@mkdir -p $(@D); echo "  CC      $(@:$(O)/%=%)"
	$(Q)$(CC) $(TEST_FLAGS) $(if $(call on,CUDA),-DWF_TEST_CUDA -isystem $(CUDA_HOME)/include) $(DEPENDS) -c $< -o $@

$(O)/readme_example.c: README.md
	@mkdir -p $(@D); sed -n '/^```c$$/,/^```$$/{/^```/!p}' $< > $@
$(O)/readme_example: $(O)/readme_example.c $(STATIC)
	@$(CC) $(TEST_FLAGS) $(LINK_FLAGS) $^ -o $@ $(OPENMP_FLAG) $(CUDA_LIBS) -lm

fuzz:  ## libFuzzer: bytes into calls, under sanitizers, against the oracle (FUZZ_TIME=60 seconds)
	@$(MAKE) --no-print-directory FUZZ=1 CC=clang ISAS="$(ISAS)" run-fuzz

run-fuzz: $(O)/tests/fuzz/fuzz_calls $(REPLAY)
	@[ -d $(O)/corpus ] || $(REPLAY) --seeds $(O)/corpus > /dev/null
	@$< -max_total_time=$(or $(FUZZ_TIME),60) -artifact_prefix=$(O)/ $(or $(ARGS),$(O)/corpus $(FINDS))

check-fuzz: $(REPLAY)  ## the fuzzer's first inputs and former finds, without libFuzzer; or those named by ARGS
	@[ -d $(O)/corpus ] || $(REPLAY) --seeds $(O)/corpus > /dev/null
	@$(REPLAY) $(or $(ARGS),$(O)/corpus $(FINDS)) > $(O)/replay.log 2>&1 || { tail -n 20 $(O)/replay.log; exit 1; }
	@echo "fuzz: $$(grep -c / $(O)/replay.log) inputs replayed"

# What the tests share, so that the fuzzer takes of it what it needs.
$(O)/tests/helpers.a: $(HELPERS)
	@rm -f $@; $(AR) rcsD $@ $^

$(O)/tests/fuzz/fuzz_calls: $(FUZZ_OBJ) $(O)/tests/helpers.a $(STATIC)
	@echo "  LINK    $(@:$(O)/%=%)"
	$(Q)$(CC) $(LINK_FLAGS) -fsanitize=fuzzer $^ -o $@ $$(pkg-config --libs check) -pthread $(CUDA_LIBS) -lquadmath -lm

$(REPLAY): $(REPLAY).o $(FUZZ_OBJ) $(O)/tests/helpers.a $(STATIC)
	@echo "  LINK    $(@:$(O)/%=%)"
	$(Q)$(CC) $(LINK_FLAGS) $^ -o $@ $$(pkg-config --libs check) $(OPENMP_FLAG) -pthread $(CUDA_LIBS) -lquadmath -lm

include bench/bench.mk

# ---- demo and examples ----

demo: $(O)/examples/demo/demo $(EXAMPLES)  ## what each layer is for, on Fashion-MNIST: minutes (ARGS=--quick: seconds; ARGS=--help)
	@$< --out $(O)/demo $(ARGS)

$(O)/examples/demo/demo: $(DEMO_OBJ) $(STATIC)
	@echo "  LINK    $(@:$(O)/%=%)"
	$(Q)$(CC) $(LINK_FLAGS) $^ -o $@ $$(pkg-config --libs-only-L openblas zlib) -Wl,--as-needed $(call static,openblas) \
	    $(call static,z) $(if $(filter -lgomp,$(PRIVATE_LIBS)),$(call static,gomp)) $(OPENMP_FLAG) -pthread $(CUDA_LIBS) -lm

$(EXAMPLES): $(O)/%: $(O)/%.o $(STATIC)
	@echo "  LINK    $(@:$(O)/%=%)"
	$(Q)$(CC) $(LINK_FLAGS) $^ -o $@ $(OPENMP_FLAG) $(CUDA_LIBS) -lm

$(O)/examples/%.o: examples/%.c $(O)/flags
	@mkdir -p $(@D); echo "  CC      $(@:$(O)/%=%)"
	$(Q)$(CC) $(DEMO_FLAGS) $(if $(findstring /demo/,$<),$$(pkg-config --cflags openblas zlib) \
	    $(if $(call on,CUDA),-DDEMO_CUDA -isystem $(CUDA_HOME)/include)) $(DEPENDS) -c $< -o $@

# ---- quality ----

coverage:  ## lines of src/ that the tests run (gcovr; text and build/coverage/index.html)
	@[ ! -d $(BUILD)/coverage ] || find $(BUILD)/coverage -name '*.gcda' -delete
	@$(MAKE) --no-print-directory COVERAGE=1 check
	@gcovr -r . --object-directory $(BUILD)/coverage --filter src/ --exclude-unreachable-branches \
	    --txt --html-details $(BUILD)/coverage/index.html

mutate:  ## 100 small mistakes in src/, one at a time: does a test notice? (hours; writes tests/mutation.md)
	@python3 tests/tools/mutate.py --work $(BUILD)/mutate $(ARGS)

mutate-sync:  ## deletes each synchronization of the CUDA kernels, then 60 mistakes in them (hours; tests/mutation-cuda.md)
	@python3 tests/tools/mutate_cuda.py --work $(BUILD)/mutate-cuda $(ARGS)

lint:  ## format, include graph, file sizes, static analysis
	@tests/tools/lint

# ---- install ----

PC_LIBDIR = $(patsubst $(PREFIX)/%,$${prefix}/%,$(LIBDIR))
CMAKEDIR  = $(LIBDIR)/cmake/welford
FILL      = sed -e 's|@PREFIX@|$(PREFIX)|g' -e 's|@PC_LIBDIR@|$(PC_LIBDIR)|g' -e 's|@VERSION@|$(VERSION)|g' \
            -e 's|@MAJOR@|$(MAJOR)|g' -e 's|@PRIVATE_LIBS@|$(PRIVATE_LIBS)|g' \
            -e "s|@PREFIX_FROM_HERE@|$$(realpath -m --relative-to=$(CMAKEDIR) $(PREFIX))|g"

install: all  ## into PREFIX (/usr/local), LIBDIR, staged in DESTDIR
	@install -d $(DESTDIR)$(PREFIX)/include $(DESTDIR)$(LIBDIR)/pkgconfig $(DESTDIR)$(CMAKEDIR)
	@install -m 644 include/welford.h $(DESTDIR)$(PREFIX)/include
	@install -m 644 $(STATIC) $(SHARED) $(DESTDIR)$(LIBDIR)
	@cp -P $(LINKS) $(DESTDIR)$(LIBDIR)
	@$(FILL) welford.pc.in > $(DESTDIR)$(LIBDIR)/pkgconfig/welford.pc
	@for f in welfordConfig welfordConfigVersion; do $(FILL) cmake/$$f.cmake.in > $(DESTDIR)$(CMAKEDIR)/$$f.cmake; done

uninstall:  ## take away what install put there
	@rm -f $(DESTDIR)$(PREFIX)/include/welford.h $(addprefix $(DESTDIR)$(LIBDIR)/,$(notdir $(STATIC) $(SHARED) $(LINKS))) \
	    $(DESTDIR)$(LIBDIR)/pkgconfig/welford.pc
	@rm -rf $(DESTDIR)$(CMAKEDIR)

# ---- housekeeping ----

clean:  ## remove BUILD
	rm -rf $(BUILD)

help:  ## this list
	@awk -F ':.*## ' '/^[a-z][a-z0-9-]*:.*  ## / { printf "  %-20s %s\n", $$1, $$2 }' $(filter-out %.d,$(MAKEFILE_LIST))
	@echo
	@echo '  BUILD=dir  CC=gcc|clang  CFLAGS="more flags"  PREFIX=dir  LIBDIR=dir  DESTDIR=dir  OPENMP=1|0  V=1'
	@echo '  ASAN=1  UBSAN=1  TSAN=1  COVERAGE=1  VALGRIND=1   check under these, each in its own folder of BUILD'
	@echo '  CUDA=0   without the CUDA back-end; CUDA_ARCHS="80 90 100 120"   what it is built for (default 90)'
	@echo '  ISAS="baseline avx2 avx512"   fewer of them for a quicker build'
	@echo '  -j1   one job at a time; else one for each core'
	@echo '  QUICK=1  SUITES="name ..."  ARGS="..."   for check; ARGS also for demo, fuzz, mutate, check-torch'

# What a target needs from the system is looked for before anything is built, and installed where that is possible.
PURPOSES := $(patsubst check-%,%,$(filter check check-aarch64 check-install check-torch coverage demo fuzz lint,$(MAKECMDGOALS))) \
            $(if $(call on,VALGRIND),valgrind)
setup:
	@$(if $(strip $(PURPOSES)),PYTHON=$(PYTHON) .ci/setup $(PURPOSES))
check-header check-readme check-install check-aarch64 check-torch coverage fuzz mutate mutate-sync lint: | setup

FORCE:
.PHONY: all check run-check check-header check-readme check-fuzz check-install check-aarch64 \
        check-torch fuzz run-fuzz demo coverage mutate mutate-sync lint \
        install uninstall clean help setup FORCE
.DELETE_ON_ERROR:

.PHONY: check-cuda check-cuda-asan check-cuda-tsan check-cuda-proofs check-gpu sanitize-gpu meter
-include $(patsubst %.o,%.d,$(LIB_OBJ) $(TEST_OBJ) $(CONTRACT) $(FUZZ_OBJ) $(HELPERS) $(EMU_PROOFS) $(REPLAY).o $(DEMO_OBJ) $(EXAMPLES:=.o)) $(O)/tests/aarch64/smoke.d
