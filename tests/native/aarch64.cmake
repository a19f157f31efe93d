# Builds for 64-bit ARM on another machine (Debian: g++-aarch64-linux-gnu; qemu-user-static runs what comes out).
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
