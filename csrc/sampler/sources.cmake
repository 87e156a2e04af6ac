# The sampler, added to a target. The tiles of an instruction set are compiled for it and reached
# through a table (isa.h); all else is portable.
function(add_sampler target)
  set(here ${CMAKE_CURRENT_FUNCTION_LIST_DIR})
  target_sources(${target} PRIVATE
    ${here}/program.cpp ${here}/packing.cpp ${here}/plan.cpp ${here}/device_plan.cpp
    ${here}/tile_layout.cpp ${here}/sampler_cpu.cpp ${here}/isa.cpp
    ${here}/isa_generic.cpp ${here}/isa_avx2.cpp ${here}/isa_avx512.cpp ${here}/isa_avx512_bf16.cpp)
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
    include(CheckCXXCompilerFlag)
    set(avx512 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma -mprefer-vector-width=512)
    set_source_files_properties(${here}/isa_avx2.cpp PROPERTIES COMPILE_OPTIONS "-mavx2;-mfma")
    set_source_files_properties(${here}/isa_avx512.cpp PROPERTIES COMPILE_OPTIONS "${avx512}")
    check_cxx_compiler_flag(-mavx512bf16 DSMOOTH_COMPILES_BF16)
    if(DSMOOTH_COMPILES_BF16)
      set_source_files_properties(${here}/isa_avx512_bf16.cpp PROPERTIES
        COMPILE_OPTIONS "${avx512};-mavx512bf16")
    endif()
  endif()
  find_package(Threads REQUIRED)
  target_link_libraries(${target} PRIVATE Threads::Threads)
endfunction()
