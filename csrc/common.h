// Errors: a bad argument is std::invalid_argument, which Python sees as ValueError.
#pragma once

#include <sstream>
#include <stdexcept>

#define SPLIP_CHECK(condition, ...)                                                    \
  do {                                                                                 \
    if (!(condition)) throw std::invalid_argument(splip::detail::concat(__VA_ARGS__)); \
  } while (0)

namespace splip::detail {

template <typename... Args>
std::string concat(const Args&... args) {
  std::ostringstream out;
  (out << ... << args);
  return out.str();
}

}  // namespace splip::detail
