#!/usr/bin/env bash
# Property: what training does to a drive is told before, kept within --write-budget, and counted
# after. A limit that cannot be kept is refused in one sentence whose flag works, and may be changed
# on resume; ssd_written_total_bytes goes on over a resume; a drive whose endurance would be used
# up within a year is warned of, and one whose endurance is not known is not.
# Method: gpt-tiny with all state on the drive; known machines for what depends on endurance.
. tests/shared/system.sh
make_data
common=(train --model gpt-tiny --data "$work/data" --seq 64 --batch 4 --steps 6 --resident none
    --nvme "$work/nvme" --out "$work/run")
total() { last_value "$work/run/metrics.jsonl" ssd_written_total_bytes; }

run "${common[@]}" --write-budget 1M/day
refused "--write-budget that no placement keeps is refused" 1 "spares the drive most writes .* a day"
least=$(least_flag --write-budget)
must "${common[@]}" --write-budget "$least/day"
ok "and the flag that ends the sentence works ($least)"
check "the end tells what was written" grep -qE "written to drive .* since the run began.* a day" "$work/out"
check "nothing is claimed of a drive that is not known" test -z "$(grep -h 'rated for' "$work/err" "$work/out")"
first=$(total)
run "${common[@]}" --resume --steps 9 --write-budget 1M
refused "a resumed run may be given another limit" 1 "--write-budget"
must "${common[@]}" --resume --steps 9 --write-budget 0
check "the count goes on over a resume ($first, $(total))" test "$(total)" -gt "$first"

run "${common[@]}" --write-budget 2T/week
refused "a size a week is no size a day" 2 "2T/day"

# What a person writes into the profile that bench has made.
must bench ssd --nvme "$work/nvme" --seconds 0.2 --size 16M --threads 1 --out "$work/machine.json"
sed -i "s/\"endurance_bytes\": 0/\"endurance_bytes\": $(last_value "$work/machine.json" capacity_bytes)/" \
    "$work/machine.json"
must "${common[@]}" --resume --steps 12 --write-budget 0 --machine "$work/machine.json"
check "train warns of a drive whose endurance is written into the profile" grep -q "rated for in [0-9]* days" "$work/err"
check "and tells at its end how long it would last" grep -q "endurance .* days at this pace" "$work/out"

imagined=(plan --model gpt2-1558m --gpu rtx3060 --cpu 7950x3d --ram 32G --ram-budget 16G --batch 4
    --accum 2)
run "${imagined[@]}" --ssd qlc-2tb
check "plan warns of a drive that would be used up within a year" grep -q "rated for in [0-9]* days" "$work/err"
check "and says what helps" grep -q -- "--write-budget" "$work/err"
run "${imagined[@]}" --ssd qlc-2tb --write-budget 1M/day
refused "plan refuses as train does" 1 "--write-budget [0-9]+M$"
least=$(least_flag --write-budget)
must "${imagined[@]}" --ssd qlc-2tb --write-budget "$least/day" --json
check "plan keeps the limit" awk -v most="$(last_value "$work/out" write_budget_bytes_per_day)" \
    -v predicted="$(last_value "$work/out" ssd_written_bytes_per_day)" \
    'BEGIN { exit !(predicted > 0 && predicted <= most) }'
finish
