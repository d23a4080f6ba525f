"""What all rooms build on. It knows nothing of the life cycle, and its modules are public as they are: no door.

access: who may open pages and who may act.
bounded_work: work on what strangers wrote, in processes that can be ended.
confined: what a command may read and run that a page or an agent starts.
device: processors and kinds of GPU; what differs between them is here only.
doctor: packages, disk and devices of this machine, as `tuneloop doctor` lists them.
errors: `UserError`, the one error that a user sees.
files: records to files and back, atomic writes, hashes, locks.
flag: fields of settings as options of the command line.
foreign: readers of what someone else may have written, within limits.
http: the one client, its limits and timeouts.
http_server: uvicorn with limits for slow, silent or many clients.
ids: ids that sort by time, and times.
journal: an append-only file of lines that survives its process.
json_schema: JSON Schemas of users and strangers, checked in bounded time.
lazy: what is imported when it is first used: numpy, and the names at doors.
machine: facts about this machine and process.
object_store: folders that are kept in an object store as well.
parent: processes that end after the one that started them.
patterns: regular expressions that people write; no search takes long.
python_file: a user's own Python file, run in this process.
ray: a Ray cluster: work, training and searches on it.
sharded: tensors that are divided over several processes.
stats: intervals, tests, and evidence that holds at any time.
terminal: lines and progress bars.
text: texts and JSON values that every file and database can hold.
threads: how many threads torch computes with.
ui: what a user sees while something works.
units: dollars, hours and seconds as people say them.
urls: URLs with a login, as they are shown and sent.
version: the version of the package.
written: numbers and texts of unknown origin as people read them, on pages and terminals alike.
"""
