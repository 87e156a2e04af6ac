# The sampler, added to a target that links dsmooth_flags. Its tiles are compiled per instruction set,
# which AVX-512 has for bfloat16 in its BF16 extension alone; all else is portable.
include(${CMAKE_CURRENT_LIST_DIR}/../isa.cmake)

function(add_sampler target)
  set(here ${CMAKE_CURRENT_FUNCTION_LIST_DIR})
  target_sources(${target} PRIVATE
    ${here}/program.cpp ${here}/packing.cpp ${here}/plan.cpp ${here}/device_plan.cpp
    ${here}/block_layout.cpp ${here}/sampler_cpu.cpp ${here}/tile_kernels.cpp)
  compile_for_instruction_sets(${target} ${here}/tiles_float32.cpp ${here}/tile_kernels.cpp
    FLOAT32_SETS generic avx2 avx512)
  compile_for_instruction_sets(${target} ${here}/tiles_bfloat16.cpp ${here}/tile_kernels.cpp
    BFLOAT16_SETS generic avx2 avx512bf16)
  find_package(Threads REQUIRED)
  target_link_libraries(${target} PRIVATE Threads::Threads)
endfunction()
