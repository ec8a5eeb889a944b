-- Posts one body again and again. Arguments: its file; how many of its first bytes are JSON, or - where all are; where connections
-- are to pause after each answer, for how many milliseconds on average. The last line of the output is JSON.
function init(args)
  local file = assert(io.open(args[1], "rb"))
  local json_bytes = args[2] ~= "-" and args[2] or nil
  wrk.method = "POST"
  wrk.body = file:read("*a")
  wrk.headers["Content-Type"] = json_bytes and "application/octet-stream" or "application/json"
  wrk.headers["Inference-Header-Content-Length"] = json_bytes
  file:close()
  if args[3] then
    local pause_ms = tonumber(args[3])
    delay = function() return math.random(math.floor(pause_ms / 2), math.ceil(3 * pause_ms / 2)) end
  end
end

function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    '\n{"rps": %.3f, "p50_ms": %.4f, "p90_ms": %.4f, "p99_ms": %.4f, "max_ms": %.4f, "errors": %d}\n',
    1e6 * summary.requests / summary.duration, latency:percentile(50) / 1000, latency:percentile(90) / 1000,
    latency:percentile(99) / 1000, latency.max / 1000, e.connect + e.read + e.write + e.status + e.timeout))
end
