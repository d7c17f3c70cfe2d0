-- What Argo CD says of a FineTuneStudy. It reads conditions only, and no library but Lua's own base.
local function find(kind)
  for _, condition in ipairs(obj.status.conditions) do
    if condition.type == kind then
      return condition
    end
  end
  return {}
end

local function say(status, condition)
  local message = condition.reason or ""
  if condition.message ~= nil and condition.message ~= "" then
    message = message .. ": " .. condition.message
  end
  return {status = status, message = message}
end

if obj.metadata.deletionTimestamp ~= nil then
  return {status = "Progressing", message = "Being deleted"}
end
if obj.status == nil or obj.status.conditions == nil then
  return {status = "Progressing", message = "Waiting for the operator"}
end
if obj.status.observedGeneration ~= obj.metadata.generation then
  return {status = "Progressing", message = "Waiting for the operator to see a change"}
end
-- Failed, or not accepted: somebody must do something.
if find("Failed").status == "True" then
  return say("Degraded", find("Failed"))
end
if find("Stalled").status == "True" then
  return say("Degraded", find("Stalled"))
end
if find("Complete").status == "True" then
  return say("Healthy", find("Complete"))
end
if find("Suspended").status == "True" then
  return say("Suspended", find("Suspended"))
end
-- A bucket that is away is nobody's fault in the study: everything waits, and goes on.
if find("StorageReady").status == "False" then
  return say("Progressing", find("StorageReady"))
end
return say("Progressing", find("Complete"))
