sleep 100 & setsid sleep 200 & wait
