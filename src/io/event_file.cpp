// SPDX-License-Identifier: Apache-2.0
#include "io/event_file.h"

#include <bit>
#include <ctime>
#include <span>

#include "io/file.h"

namespace reco::io {

namespace {

static_assert(std::endian::native == std::endian::little);

template <typename T>
void append(std::string& out, T value) {
  out.append(reinterpret_cast<const char*>(&value), sizeof value);
}

void append_varint(std::string& out, std::uint64_t value) {
  for (; value >= 0x80; value >>= 7U) out.push_back(static_cast<char>(0x80U | (value & 0x7fU)));
  out.push_back(static_cast<char>(value));
}

// Protocol buffers: a field's number and wire type, then its value.
void append_bytes(std::string& out, unsigned field, const std::string& bytes) {
  append_varint(out, field << 3U | 2U);
  append_varint(out, bytes.size());
  out += bytes;
}

// CRC-32C (Castagnoli), masked as TFRecord wants it.
std::uint32_t masked_crc(const std::string& bytes) {
  std::uint32_t crc = 0xffffffffU;
  for (const char byte : bytes) {
    crc ^= static_cast<std::uint8_t>(byte);
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1U) ^ (0x82f63b78U & (0U - (crc & 1U)));
  }
  crc = ~crc;
  return std::rotr(crc, 15) + 0xa282ead8U;
}

void append_record(std::string& out, const std::string& event) {
  std::string length;
  append(length, static_cast<std::uint64_t>(event.size()));
  out += length;
  append(out, masked_crc(length));
  out += event;
  append(out, masked_crc(event));
}

// Event {double wall_time = 1; int64 step = 2; string file_version = 3; Summary summary = 5}
std::string event_at(double time) {
  std::string out;
  append_varint(out, 1U << 3U | 1U);
  append(out, time);
  return out;
}

// Summary {repeated Value value = 1}, Value {string tag = 1; float simple_value = 2}
std::string scalar_event(const Scalar& scalar, double time) {
  std::string value, summary;
  append_bytes(value, 1, scalar.tag);
  append_varint(value, 2U << 3U | 5U);
  append(value, scalar.value);
  append_bytes(summary, 1, value);
  auto out = event_at(time);
  append_varint(out, 2U << 3U);
  append_varint(out, static_cast<std::uint64_t>(scalar.step));
  append_bytes(out, 5, summary);
  return out;
}

}  // namespace

void write_event_file(const std::filesystem::path& file, const std::vector<Scalar>& scalars) {
  const auto now = static_cast<double>(std::time(nullptr));
  auto first = event_at(now);
  append_bytes(first, 3, "brain.Event:2");
  std::string out;
  append_record(out, first);
  for (const auto& scalar : scalars) append_record(out, scalar_event(scalar, now));
  const std::span<const std::byte> bytes = std::as_bytes(std::span(out));
  write_file_durably(file, std::span(&bytes, 1));
}

}  // namespace reco::io
