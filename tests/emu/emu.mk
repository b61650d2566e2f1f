# The emulator: its run-time in three modes, and its own test.  Included by the main Makefile, after O is known.
#   EMU_RUNTIME_plain, _asan, _tsan   archives to link; EMU_FLAGS_<mode>: how to compile kernels (-x c++) and tests for it
CUDA_HOME ?= /usr/local/cuda
EMU       := $(BUILD)/emu
EMU_BASE  := -std=c++17 -g1 -Wall -Wextra -Werror -DWF_EMU -fno-strict-aliasing -ffp-contract=off -pthread \
             -isystem $(CUDA_HOME)/include -Iinclude -Isrc -Isrc/cuda/prim -Itests/emu
EMU_SRC   := $(addprefix tests/emu/,context.cpp scheduler.cpp races.cpp collectives.cpp memory.cpp cudart.cpp graphs.cpp meter.cpp)
EMU_TEST  := $(addprefix tests/emu/,planted.cu correct.cu run_case.cu metered.cu emu_check.cpp)

# g++ finds more undefined behaviour; clang's TSan is many times as fast.
EMU_CXX_plain := g++
EMU_CXX_asan  := g++
EMU_CXX_tsan  := clang++
EMU_DEFINE_plain :=
EMU_DEFINE_asan  := -DEMU_ASAN
EMU_DEFINE_tsan  := -DEMU_TSAN
EMU_LINK_asan := -fsanitize=address,undefined
EMU_LINK_tsan := -fsanitize=thread
EMU_FLAGS_plain := $(EMU_BASE) -O2
EMU_FLAGS_asan  := $(EMU_BASE) -O1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all $(EMU_DEFINE_asan) -DWF_FEW_DTYPES
EMU_FLAGS_tsan  := $(EMU_BASE) -O1 -fno-omit-frame-pointer -fsanitize=thread $(EMU_DEFINE_tsan) -DWF_FEW_DTYPES -Wno-pass-failed

define emu_mode
EMU_RUNTIME_$1 := $(EMU)/$1/libemu.a
$(EMU)/$1/%.cpp.o: tests/emu/%.cpp
	@mkdir -p $$(@D); echo "  CXX     emu/$1/$$*.cpp"
	$$(Q)$(EMU_CXX_$1) $(EMU_BASE) -O2 $(EMU_DEFINE_$1) $$(DEPENDS) -c $$< -o $$@
$(EMU)/$1/%.cu.o: tests/emu/%.cu
	@mkdir -p $$(@D); echo "  CXX     emu/$1/$$*.cu"
	$$(Q)$(EMU_CXX_$1) $(EMU_FLAGS_$1) $$(DEPENDS) -x c++ -c $$< -o $$@
$(EMU)/$1/libemu.a: $(EMU_SRC:tests/emu/%=$(EMU)/$1/%.o)
	@rm -f $$@; $$(AR) rcsD $$@ $$^
$(EMU)/$1/emu_check: $(EMU_TEST:tests/emu/%=$(EMU)/$1/%.o) $(EMU)/$1/libemu.a
	@echo "  LINK    emu/$1/emu_check"
	$$(Q)$(EMU_CXX_$1) $(EMU_LINK_$1) $$^ -o $$@ -pthread
-include $(patsubst tests/emu/%,$(EMU)/$1/%.d,$(EMU_SRC) $(EMU_TEST))
endef
$(foreach mode,plain asan tsan,$(eval $(call emu_mode,$(mode))))

check-emu: $(foreach mode,plain asan tsan,$(EMU)/$(mode)/emu_check)  ## the emulator's own test: planted bugs are reported, correct kernels not
	@for mode in plain asan tsan; do $(EMU)/$$mode/emu_check $(ARGS) || exit 1; done
	@for s in '__shared__ float s[8]' 'WF_SHARED(float, s, 8)'; do \
	    printf '#include "device.cuh"\n__global__ void f(int) { %s; (void)s[0]; }\n' "$$s" | \
	    $(EMU_CXX_plain) $(EMU_FLAGS_plain) -x c++ -fsyntax-only - 2> /dev/null; echo $$?; \
	done | tr '\n' ' ' | grep -q '^1 0 $$' || { echo "raw __shared__ compiles, or WF_SHARED does not"; exit 1; }

.PHONY: check-emu
