# The instruction sets that code is compiled for, and the recipe that compiles a source for some of
# them. To be included where a target dsmooth_flags is. common/isa.h has the choice at run time.
include_guard()
include(CheckCXXCompilerFlag)

# The table, the least set first: its name, the bytes of a vector, and the features of a CPU that it
# is made of. The compiler is told -m<feature>, the CPU asked __builtin_cpu_supports("<feature>").
set(instruction_set_table
  "generic    16"
  "avx2       32 avx2 fma"
  "avx512     64 avx2 fma avx512f avx512bw avx512dq avx512vl"
  "avx512bf16 64 avx2 fma avx512f avx512bw avx512dq avx512vl avx512bf16")

set(DSMOOTH_INSTRUCTION_SETS "" CACHE STRING
  "Instruction sets to build, of the table in isa.cmake; empty: all that the compiler has")

set(instruction_sets "")  # the names of those that this compiler builds
set(known_sets "")        # for isa.cpp: all, and when a CPU has them
foreach(row IN LISTS instruction_set_table)
  separate_arguments(row UNIX_COMMAND "${row}")
  list(POP_FRONT row name vector_bytes)
  set(flags ${row})
  list(TRANSFORM flags PREPEND -m)
  if(vector_bytes EQUAL 64)
    list(APPEND flags -mprefer-vector-width=512)
  endif()
  set(builds TRUE)
  if(flags)
    set(builds FALSE)
    if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
      check_cxx_compiler_flag("${flags}" DSMOOTH_COMPILES_${name})
      set(builds ${DSMOOTH_COMPILES_${name}})
    endif()
  endif()
  if(DSMOOTH_INSTRUCTION_SETS AND NOT name IN_LIST DSMOOTH_INSTRUCTION_SETS)
    set(builds FALSE)
  endif()
  if(builds)
    list(APPEND instruction_sets ${name})
    list(TRANSFORM row REPLACE "(.+)" " && HAS(\\1)")
    list(JOIN row "" asked)
    string(APPEND known_sets " DSMOOTH_SET(${name}, true${asked})")
  else()
    string(APPEND known_sets " DSMOOTH_SET(${name}, false)")
  endif()
  set(vector_bytes_${name} ${vector_bytes})
  set(flags_${name} ${flags})
endforeach()

add_library(dsmooth_isa OBJECT ${CMAKE_CURRENT_LIST_DIR}/common/isa.cpp)
target_compile_definitions(dsmooth_isa PRIVATE "DSMOOTH_SETS=${known_sets}")
target_link_libraries(dsmooth_isa PRIVATE dsmooth_flags)

# Adds `source` to `target` once for each of the sets ARGN that is built, with DSMOOTH_ISA its name,
# for a namespace, DSMOOTH_ISA_NAME the same as a string, and DSMOOTH_VECTOR_BYTES. The source
# `chooser` sees them as the macro `list`: DSMOOTH_SET(name) for each.
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
          DSMOOTH_ISA=${name} DSMOOTH_ISA_NAME="${name}"
          DSMOOTH_VECTOR_BYTES=${vector_bytes_${name}})
        target_compile_options(${library} PRIVATE ${flags_${name}})
        target_link_libraries(${library} PRIVATE dsmooth_flags)
      endif()
      target_link_libraries(${target} PRIVATE ${library})
      string(APPEND sets " DSMOOTH_SET(${name})")
    endif()
  endforeach()
  target_link_libraries(${target} PRIVATE dsmooth_isa)
  set_property(SOURCE ${chooser} APPEND PROPERTY COMPILE_DEFINITIONS "${list}=${sets}")
endfunction()
