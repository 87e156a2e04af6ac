# The instruction sets that code is compiled for, and a function that compiles a source for some of
# them. Needs a target dsmooth_flags. common/isa.h selects a set at run time.
include_guard()
include(CheckCXXSourceCompiles)

# The table, the least set first: its name, the bytes of a vector and the number of its registers, a
# macro that the compiler has where it knows the set, and the features of a CPU that it is made of.
# The compiler gets -m<feature>; at run time __builtin_cpu_supports("<feature>") queries the CPU. A
# compiler that does not know that query does not build the set.
set(instruction_set_table
  "generic    16 16 __cplusplus"
  "avx2       32 16 __AVX2__       avx2 fma"
  "avx512     64 32 __AVX512F__    avx2 fma avx512f avx512bw avx512dq avx512vl"
  "avx512bf16 64 32 __AVX512BF16__ avx2 fma avx512f avx512bw avx512dq avx512vl avx512bf16"
  "amx        64 32 __AMX_BF16__   avx2 fma avx512f avx512bw avx512dq avx512vl avx512bf16 amx-tile amx-bf16"
  "neon       16 32 __aarch64__")

set(DSMOOTH_INSTRUCTION_SETS "" CACHE STRING
  "Instruction sets to build, of the table in isa.cmake; empty: all that the compiler has")

set(instruction_sets "")  # the names of those that this compiler builds
set(known_sets "")        # for isa.cpp: all, and when a CPU has them
foreach(row IN LISTS instruction_set_table)
  separate_arguments(row UNIX_COMMAND "${row}")
  list(POP_FRONT row name vector_bytes registers macro)
  set(flags ${row})
  list(TRANSFORM flags PREPEND -m)
  if(vector_bytes EQUAL 64)
    list(APPEND flags -mprefer-vector-width=512)
  endif()
  if(name STREQUAL neon AND CMAKE_CXX_COMPILER_ID STREQUAL GNU)
    list(APPEND flags -fno-schedule-insns)  # else it loads so far ahead that a tile's sums spill
  endif()
  # Asked of the compiler, not of the processor's name: a universal build of macOS, which compiles
  # for two processors at once, has only the generic set.
  list(JOIN flags " " CMAKE_REQUIRED_FLAGS)
  list(TRANSFORM row REPLACE "(.+)" " && HAS(\\1)")
  list(JOIN row "" query)
  check_cxx_source_compiles("
    #if !defined(${macro})
    #error not here
    #endif
    #define HAS(feature) __builtin_cpu_supports(#feature)
    int main() { return true${query}; }" DSMOOTH_COMPILES_${name})
  unset(CMAKE_REQUIRED_FLAGS)
  set(builds ${DSMOOTH_COMPILES_${name}})
  if(DSMOOTH_INSTRUCTION_SETS AND NOT name IN_LIST DSMOOTH_INSTRUCTION_SETS)
    set(builds FALSE)
  endif()
  if(builds)
    list(APPEND instruction_sets ${name})
    string(APPEND known_sets " DSMOOTH_SET(${name}, true${query})")
  else()
    string(APPEND known_sets " DSMOOTH_SET(${name}, false)")
  endif()
  set(vectors_${name} DSMOOTH_VECTOR_BYTES=${vector_bytes} DSMOOTH_VECTOR_REGISTERS=${registers})
  set(flags_${name} ${flags})
endforeach()

# Products and sums are contracted to FMA only in code of an instruction set: all other code gives
# the same bits on every processor.
target_compile_options(dsmooth_flags INTERFACE
  "-ffp-contract=$<IF:$<BOOL:$<TARGET_PROPERTY:DSMOOTH_FMA>>,fast,off>")

add_library(dsmooth_isa OBJECT ${CMAKE_CURRENT_LIST_DIR}/common/isa.cpp)
target_compile_definitions(dsmooth_isa PRIVATE "DSMOOTH_SETS=${known_sets}")
target_link_libraries(dsmooth_isa PRIVATE dsmooth_flags)

# Adds `source` to `target` once for each of the sets ARGN that is built, with DSMOOTH_ISA its name,
# for a namespace, DSMOOTH_ISA_NAME the same as a string, DSMOOTH_VECTOR_BYTES and
# DSMOOTH_VECTOR_REGISTERS. The source `chooser` sees them as the macro `list`: DSMOOTH_SET(name)
# for each.
function(compile_for_instruction_sets target source chooser list)
  cmake_path(GET source STEM stem)
  cmake_path(GET source PARENT_PATH folder)
  cmake_path(GET folder FILENAME folder)
  set(sets "")
  foreach(name IN LISTS ARGN)
    if(name IN_LIST instruction_sets)
      set(library ${folder}_${stem}_${name})
      if(NOT TARGET ${library})  # else of another target too
        add_library(${library} OBJECT ${source})
        target_compile_definitions(${library} PRIVATE
          DSMOOTH_ISA=${name} DSMOOTH_ISA_NAME="${name}" ${vectors_${name}})
        target_compile_options(${library} PRIVATE ${flags_${name}})
        set_target_properties(${library} PROPERTIES DSMOOTH_FMA ON)
        target_link_libraries(${library} PRIVATE dsmooth_flags)
      endif()
      target_link_libraries(${target} PRIVATE ${library})
      string(APPEND sets " DSMOOTH_SET(${name})")
    endif()
  endforeach()
  target_link_libraries(${target} PRIVATE dsmooth_isa)
  set_property(SOURCE ${chooser} APPEND PROPERTY COMPILE_DEFINITIONS "${list}=${sets}")
endfunction()
