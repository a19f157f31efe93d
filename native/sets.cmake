# Adds the kernels in `folder` of each instruction set that this processor may have, with the flags that a file needs.
function(cierzo_instruction_sets target folder)
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "aarch64|arm64")
    target_sources(${target} PRIVATE ${folder}/kernels_neon.cpp)
    target_compile_definitions(${target} PRIVATE CIERZO_NEON)
    set_source_files_properties(${folder}/kernels_neon.cpp PROPERTIES COMPILE_OPTIONS "-march=armv8.2-a+dotprod")
    return()
  endif()
  if(NOT CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
    return()
  endif()
  set(avx512 "-mavx512f;-mavx512bw;-mavx512vl;-mavx512dq;-mavx512vnni;-mfma;-mf16c")
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    list(APPEND avx512 -Wno-maybe-uninitialized -Wno-uninitialized)  # false alarms in gcc 12's own headers
  endif()
  target_sources(${target} PRIVATE ${folder}/kernels_avx2.cpp ${folder}/kernels_avx512.cpp)
  target_compile_definitions(${target} PRIVATE CIERZO_X86)
  set_source_files_properties(${folder}/kernels_avx2.cpp PROPERTIES COMPILE_OPTIONS "-mavx2;-mfma;-mf16c")
  set_source_files_properties(${folder}/kernels_avx512.cpp PROPERTIES COMPILE_OPTIONS "${avx512}")
  if(CMAKE_SYSTEM_NAME STREQUAL "Linux")  # others have no way to ask for tiles
    target_sources(${target} PRIVATE ${folder}/kernels_amx.cpp)
    target_compile_definitions(${target} PRIVATE CIERZO_AMX)
    if(CIERZO_EMULATED_TILES)  # for tests, where the processor has no AMX
      target_compile_definitions(${target} PRIVATE CIERZO_EMULATED_TILES)
    endif()
    set_source_files_properties(${folder}/kernels_amx.cpp PROPERTIES COMPILE_OPTIONS
                                "${avx512};-mamx-tile;-mamx-int8")
  endif()
endfunction()
